"""Calibration text that the model generates itself: `--calibration self`."""

from __future__ import annotations

import numpy as np

from bitsmith.calibration.sources import CalibrationTokens, Request, own_text
from bitsmith.errors import FileError
from bitsmith.runtime.generate import Sampling, generate_batch
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.system.progress import Progress, Report, silent

BATCH = 32  # texts generated together
_SHORTEST = 8  # tokens a text must have on average


def generate_tokens(request: Request, model: LanguageModel, *, report: Report = silent) -> CalibrationTokens:
    """Windows of what the model says when nothing is asked of it, as LLM-QAT (Liu et al. 2023, section 3.1) does.

    Each text begins with the start token, or, where the tokenizer adds none, with a token drawn from the seed; all
    later ones are drawn at temperature 1 from the whole vocabulary, until an end token or a window's length. Texts
    follow each other without gaps. Same seed, same tokens.
    Raises FileError where the model ends its texts at once.
    """
    needed = request.windows * request.context
    random = np.random.default_rng(request.seed)
    start = model.tokenizer.bos if model.tokenizer.adds_bos else None
    ids: list[int] = []
    while len(ids) < needed:
        report(Progress("generate", len(ids), needed, "tokens"))
        count = min(BATCH, -(-(needed - len(ids)) // request.context))
        drawn = random.integers(0, min(model.tokenizer.size, model.config.vocab), count)
        firsts = [int(token) if start is None else start for token in drawn]
        texts = generate_batch(
            model.decoder,
            [[first] for first in firsts],
            max_tokens=request.context - 1,
            sampling=Sampling(1.0, top_k=0, top_p=1.0, min_p=0.0, seed=int(random.integers(1 << 62))),
            end_ids=model.tokenizer.end_ids,
        )
        if sum(len(text.tokens) for text in texts) < _SHORTEST * count:
            raise FileError(
                f"{model.name}: --calibration self: the model ends its texts after {_SHORTEST} tokens or fewer; "
                "give a text instead, --calibration FILE."
            )
        for first, text in zip(firsts, texts, strict=True):
            ids += [first, *text.tokens]
    report(Progress("generate", needed, needed, "tokens"))
    tokens = np.array(ids[:needed], np.int64).reshape(request.windows, request.context)
    if start is not None:
        tokens[:, 0] = start
    return CalibrationTokens(own_text(model.name), tokens, request.seed)
