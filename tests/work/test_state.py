"""State files and ledgers: read back exactly, and never trusted when they are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bitsmith.errors import FileError
from bitsmith.work.ledger import WorkLedger
from bitsmith.work.pace import Pace
from bitsmith.work.state import DamagedError, State, Streamed, write_state

VALUES = {"layer": 7, "loss": 0.1, "names": ["blk.0.attn_q"], "random": {"state": 1 << 100}}


def arrays() -> dict[str, np.ndarray | Streamed]:
    """One array of each kind."""
    random = np.random.default_rng(0)
    whole = random.standard_normal((5, 3, 2)).astype(np.float32)
    return {
        "codes": random.integers(0, 256, (4, 6), np.uint8),
        "scale": random.standard_normal((4, 2)).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 8), np.float32),
        "hidden": Streamed(whole.shape, whole.dtype, lambda: (whole[at : at + 2] for at in (0, 2, 4))),
        "sums": random.standard_normal(3),
    }


def written(path: Path) -> Path:
    write_state(path, VALUES, arrays())
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with State(written(tmp_path / "x.state")) as state:
        assert state.values == VALUES
        for name, array in arrays().items():
            wanted = np.concatenate(list(array.pieces())) if isinstance(array, Streamed) else array
            found = state.array(name)
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
            assert found.tobytes() == wanted.tobytes()
        assert state.rows("hidden", 1, 4).shape == (3, 3, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["x.state"]


def test_every_damaged_byte_and_every_cut_is_found(tmp_path: Path) -> None:
    whole = written(tmp_path / "x.state").read_bytes()
    path = tmp_path / "y.state"
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedError):
            State(path)
        path.write_bytes(whole[:at])
        with pytest.raises(DamagedError):
            State(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(DamagedError):
        State(path)


def test_a_state_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.state")
    with pytest.raises(FileError, match="not a regular file"):
        State(tmp_path / "x.state")


def test_a_failed_write_leaves_the_state_before(tmp_path: Path) -> None:
    path = written(tmp_path / "x.state")
    before = path.read_bytes()

    def broken() -> list[np.ndarray]:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_state(path, {}, {"a": Streamed((2,), np.dtype(np.float32), broken)})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.state"]


def test_a_torn_line_ends_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = WorkLedger(path)
    assert ledger.lines == []
    assert not ledger.damaged
    ledger.add([{"tensor": "a"}, {"tensor": "b"}])
    ledger.add([{"tensor": "c"}])
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        found = WorkLedger(path)
        assert len(found.lines) == sum(end <= at for end in ends)
        assert found.damaged == (at not in (0, *ends))
        found.add([{"tensor": "d"}])
        assert WorkLedger(path).lines == [*found.lines]
        assert found.lines[-1] == {"tensor": "d"}


def test_a_changed_line_and_all_behind_it_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    WorkLedger(path).add([{"n": 1}, {"n": 2}, {"n": 3}])
    path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":9'))
    found = WorkLedger(path)
    assert found.lines == [{"n": 1}]
    assert found.damaged


def test_what_costs_much_is_kept_less_often() -> None:
    now = [0.0]
    pace = Pace(least=0.5, share=0.1, clock=lambda: now[0])
    assert not pace.due
    now[0] = 0.5
    assert pace.due
    with pace.keeping():
        now[0] += 2.0
    now[0] += 19.0
    assert not pace.due
    assert pace.due_cheaply
    now[0] += 1.0
    assert pace.due
