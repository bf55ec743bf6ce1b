"""Embeddings of texts: the last hidden states behind the final norm, pooled and scaled to length 1."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.serve.requests import EmbeddingBody

_MOST = 256  # texts of a request


def embeddings(model: LanguageModel, body: EmbeddingBody, name: str) -> dict[str, Any]:
    """The answer to POST /v1/embeddings. Raises UsageError for no text, too many or too long ones."""
    texts = _texts(model, body)
    data, tokens = [], 0
    for number, ids in enumerate(texts):
        vector = embedding(model, ids, body.pooling)
        told: Any = vector.tolist()
        if body.encoding_format == "base64":
            told = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": number, "embedding": told})
        tokens += len(ids)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": name, "usage": usage}


def embedding(model: LanguageModel, ids: list[int], pooling: str) -> np.ndarray:
    """float32 [hidden], of length 1. pooling: "mean" or "last" of the tokens"""
    decoder = model.decoder
    states = decoder.numpy(decoder.normed(decoder.hidden(np.array([ids]))))[0]
    pooled = states.mean(axis=0) if pooling == "mean" else states[-1]
    found: np.ndarray = (pooled / max(float(np.linalg.norm(pooled)), 1e-12)).astype(np.float32)
    return found


def _texts(model: LanguageModel, body: EmbeddingBody) -> list[list[int]]:
    if body.dimensions not in (None, model.config.hidden):
        raise UsageError(f"dimensions: this model's embeddings have {model.config.hidden}; leave it out.")
    given = body.input
    if isinstance(given, str):
        texts: list[Any] = [given]
    else:
        texts = [given] if given and isinstance(given[0], int) else list(given)
    if not 1 <= len(texts) <= _MOST:
        raise UsageError(f"input: expected 1 to {_MOST} texts, found {len(texts)}.")
    ids = [model.prompt_ids(text) if isinstance(text, str) else [int(token) for token in text] for text in texts]
    for number, own in enumerate(ids):
        if not 1 <= len(own) <= model.config.context:
            raise UsageError(f"input {number}: {len(own):,} tokens; expected 1 to {model.config.context:,}.")
    return ids
