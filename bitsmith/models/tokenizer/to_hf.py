"""Makes the tokenizer files of a Hugging Face folder from a Vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bitsmith.models.tokenizer.from_gguf import tokenizer_json
from bitsmith.models.tokenizer.vocabulary import Vocabulary


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and chat templates, by file name.

    bitsmith and transformers get the same tokenizer from them.
    """
    special = vocabulary.special
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
    }
    config |= {
        f"{role}_token": vocabulary.tokens[special[role]] for role in ("bos", "eos", "pad", "unk") if role in special
    }
    generation: dict[str, Any] = {f"{role}_token_id": special[role] for role in ("bos", "pad") if role in special}
    if vocabulary.end_ids:
        generation["eos_token_id"] = sorted(vocabulary.end_ids)
    files = {
        "tokenizer.json": tokenizer_json(vocabulary).encode(),
        "tokenizer_config.json": _json(config),
        "generation_config.json": _json(generation),
    }
    if vocabulary.chat_template is not None:
        files["chat_template.jinja"] = vocabulary.chat_template.encode()
    for name, template in vocabulary.chat_templates.items():
        files[f"additional_chat_templates/{name}.jinja"] = template.encode()
    return files


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
