"""The text peers calibrate on: the same windows for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def calibration_windows(
    tokenizer: Any, text: Path, tokens: int, context: int, seed: int = 0
) -> list[dict[str, torch.Tensor]]:
    """Windows of `context` tokens that do not overlap, drawn with a seed: `tokens` tokens in all."""
    ids = torch.tensor(tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    count, available = tokens // context, len(ids) // context
    if not 0 < count <= available:
        raise SystemExit(f"{text}: {available} windows of {context} tokens, but {count} were asked for")
    drawn = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    rows = ids[: available * context].reshape(available, context)[drawn]
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
