"""Small data sets and quick options for tests of training."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

QUICK: dict[str, Any] = {"steps": 4, "batch": 2, "accumulate": 1, "learning_rate": 5e-3, "rank": 4, "context": 64}


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """A .jsonl file."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def sums(path: Path, count: int = 12) -> Path:
    """Chats about sums."""
    return write_lines(
        path,
        [
            {
                "messages": [
                    {"role": "user", "content": f"What is {a} plus {a + 1}?"},
                    {"role": "assistant", "content": f"It is {2 * a + 1}."},
                ]
            }
            for a in range(count)
        ],
    )
