"""The bar that huggingface_hub wants for its progress: it draws nothing and calls a report."""

from __future__ import annotations

from threading import Lock
from typing import Any

from huggingface_hub.utils import tqdm

from bitsmith.system.progress import Progress, Report


def reporting_bar(report: Report, total: int, name: str) -> type[Any]:
    """A class of bars that together report the bytes of one download, as the stage "download".

    total: bytes of all files; 0 if unknown
    huggingface_hub makes one bar a file, or two bars for all files: bytes received, and bytes written.
    """
    lock, done = Lock(), dict[str, float]()

    class Bar(tqdm):
        """Counts bytes, and draws nothing."""

        def __init__(self, *args: Any, **words: Any) -> None:
            desc = str(words.get("desc") or "").lower()
            # files by name count different bytes; "received" and "written" count the same bytes
            self._kind = next((kind for kind in ("reconstructing", "downloading") if desc.startswith(kind)), "")
            self._counts_bytes = words.get("unit") == "B"
            super().__init__(*args, **{**words, "disable": True})  # type: ignore[no-untyped-call]
            self._tell(words.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            """Count `n` more bytes."""
            self._tell(n or 0)
            return None

        def _tell(self, more: float) -> None:
            if not self._counts_bytes:
                return
            with lock:
                done[self._kind] = done.get(self._kind, 0) + more
                seen = int(max(done.values()))
                report(Progress("download", min(seen, total or seen), max(total, seen), "B", name))

    return Bar
