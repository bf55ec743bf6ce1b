"""The ledger: what is kept is found again, also by several processes at once."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitsmith.comparison.ledger import Ledger, What
from bitsmith.errors import FileError


def what(number: int = 0, **changes: str) -> What:
    words = {"model": "m.gguf", "model_sha256": f"{number:064d}", "text": "prose", "text_sha256": "b" * 64}
    return What("scores", **{**words, "definition": "tokens-1", **changes})


def test_a_measurement_is_found_by_what_decided_it(tmp_path: Path) -> None:
    with Ledger(tmp_path / "deep" / "ledger.sqlite") as ledger:
        assert ledger.get(what()) is None
        ledger.put(what(), {"kld": 0.5}, b"arrays")
        assert ledger.get(what(1)) is None
        assert ledger.get(what(definition="tokens-2")) is None
    with Ledger(tmp_path / "deep" / "ledger.sqlite") as ledger:
        found = ledger.get(what(model="another name"))
        assert found is not None
        assert (found.figures, found.data, found.what.model) == ({"kld": 0.5}, b"arrays", "m.gguf")
        assert [each.data for each in ledger.measurements("scores")] == [b""]
        assert list(ledger.measurements("speed")) == []


def _writes(path: Path, first: int) -> None:
    with Ledger(path) as ledger:
        for number in range(first, first + 50):
            ledger.put(what(number), {"number": number}, b"x" * 10_000)


def test_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    spawned = multiprocessing.get_context("spawn")
    workers = [spawned.Process(target=_writes, args=(path, 1000 * number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Ledger(path) as ledger:
        assert len(list(ledger.measurements())) == 150


def test_hashes_of_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"1")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        first = ledger.sha256([one])
        assert ledger.sha256([two]) == first
        assert ledger.sha256([one, two]) not in (first, ledger.sha256([two]))
        monkeypatch.setattr("hashlib.file_digest", None)
        assert ledger.sha256([one]) == first
        monkeypatch.undo()
        one.write_bytes(b"22")
        second = ledger.sha256([one])
        assert second != first
        time.sleep(0.05)  # clocks of files are coarse
        before = one.stat()
        one.write_bytes(b"33")
        os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
        assert ledger.sha256([one]) != second


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no ledger at all, but long enough to have a head of its own")
    with pytest.raises(FileError, match="it is no ledger, or damaged"):
        Ledger(path)
    assert path.read_text().startswith("no ledger")


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    """A limit on the number of pages stands for the disk."""
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger._db.execute("PRAGMA max_page_count = 12")
        with pytest.raises(FileError, match="make room on the disk"):
            for number in range(100):
                ledger.put(what(number), {}, os.urandom(20_000))


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger._db.execute("PRAGMA user_version = 77")
    with pytest.raises(FileError, match="another version"):
        Ledger(path)


def test_many_runs_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    for number in range(10):
        start, path = threading.Barrier(6), tmp_path / f"{number}.sqlite"

        def opened(start: threading.Barrier = start, path: Path = path) -> None:
            start.wait()
            Ledger(path).close()

        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(opened) for _ in range(6)]:
                done.result()
