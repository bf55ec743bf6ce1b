"""A file beside its original: the same architecture and end tokens, and how much it may lose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitsmith.handover.subject import Subject
from bitsmith.handover.verdict import Check

_FIELDS = (  # of config.json: they must be as in the original
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "max_position_embeddings",
    "num_experts",
    "num_local_experts",
    "num_experts_per_tok",
)
_MOST_LOST = (  # bits a weight and more -> nats of mean KLD; a model of 135 M weights lost 0.001, 0.04, 0.31, 0.35
    (7.5, 0.05),
    (5.2, 0.2),
    (4.0, 0.4),
    (0.0, 0.5),
)
_COUNTED = 0.1  # this share of the quantized weights, those of the fewest bits, says how many bits a file has


def most_lost(bits: float) -> float:
    """The largest mean KLD from the original, in nats, of a file with so many bits a weight."""
    return next(most for least, most in _MOST_LOST if bits >= least)


def bits_of(subject: Subject) -> float:
    """Bits a weight of the quantized matrices: of the tenth of their weights that have the fewest; 16 without any."""
    found = []
    for info in subject.checkpoint.source.tensors.values():
        count = 1
        for length in info.shape:
            count *= length
        if len(info.shape) > 1 and count and 8 * info.nbytes / count < 15.5:
            found.append((8 * info.nbytes / count, count))
    left = _COUNTED * sum(count for _, count in found)
    for bits, count in sorted(found):
        left -= count
        if left <= 0:
            return bits
    return 16.0


def check_same_model(subject: Subject, original: Subject, ends: frozenset[int]) -> list[Check]:
    """The fields of config.json that say the architecture, where both have one, and the tokens that end a text."""
    checks = []
    mine, theirs = (_decoder(each.checkpoint.hf_config) for each in (subject, original))
    if mine and theirs:
        wrong = [name for name in _FIELDS if mine.get(name) != theirs.get(name)]
        told = (f"{name} is {mine.get(name)!r}, in the original {theirs.get(name)!r}" for name in wrong)
        checks.append(Check("original: architecture", not wrong, f"config.json: {'; '.join(told)}" if wrong else ""))
    wanted = original.tokenizer.end_ids
    gguf = "gguf" in (subject.container, original.container)  # GGUF files name one end token, or a few
    same = bool(ends & wanted) or ends == wanted if gguf else ends == wanted
    reason = f"the end tokens are {sorted(ends)}, in the original {sorted(wanted)}"
    return [*checks, Check("original: end tokens", same, "" if same else reason)]


def _decoder(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the decoder of texts."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config
