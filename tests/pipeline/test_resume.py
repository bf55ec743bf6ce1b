"""Runs that are killed and started again: the result has the same bytes as that of a run without a break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitsmith
from bitsmith.errors import FileError, UsageError
from bitsmith.work.leftovers import find_leftovers
from tests.tiny import make_folder
from tests.work.killing import start

TEXT = ("--calibration-tokens", "2048", "--threads", "1")


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def continued(words: list[str], each: int) -> tuple[int, list[str]]:
    """Kill a run again and again after `each` states, until one ends. Returns how often, and what each start said."""
    said = []
    for kills in range(100):
        done = start(words, at=each)
        said.append(done.stderr)
        if done.returncode == 0:
            return kills, said
        assert done.returncode == -signal.SIGKILL, done.stderr
    raise AssertionError("no run came to its end")


def check(words: list[str], model: Path, folder: Path, each: int, *, out: str = "out.gguf") -> list[str]:
    """Hold a run that is killed after `each` states, again and again, against one without a break."""
    command, *options = words
    one, many = folder / "one", folder / "many"
    one.mkdir()
    many.mkdir()
    first, *rest = command.split()
    whole = start([first, *rest, model, *options, "--out", one / out], at=0)
    assert whole.returncode == 0, whole.stderr
    kills, said = continued([first, *rest, str(model), *options, "--out", str(many / out)], each)
    assert kills
    assert "continuing an interrupted run after" in said[-1]
    assert tree(many) == tree(one)
    return said


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose larger tensors are several chunks."""
    folder = tmp_path_factory.mktemp("resume") / "model"
    return make_folder(folder, hidden_size=256, intermediate_size=4096, num_hidden_layers=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for runs that calibrate."""
    return make_folder(tmp_path_factory.mktemp("resume") / "small", num_hidden_layers=3)


slow = pytest.mark.slow
PLAIN = [
    (["quantize", "--to", "q4_k_m", "--threads", "1"], 16),
    pytest.param(["quantize", "--to", "gptq/int4", "--method", "nearest", "--threads", "2"], 4, marks=slow),
    pytest.param(["quantize", "--to", "native/nf4", "--max-shard-size", "2MB"], 5, marks=slow),
    pytest.param(["convert", "--to", "gguf/f16"], 8, marks=slow),
]
CALIBRATED = [
    (["quantize", "--to", "q4_0", "--method", "gptq", *TEXT], 8),
    pytest.param(["quantize", "--to", "q4_0", "--method", "gptq", *TEXT], 3, marks=slow),
    pytest.param(["quantize", "--to", "gptq/int4", "--method", "gptq", *TEXT], 3, marks=slow),
    pytest.param(["quantize", "--to", "q4_0", "--method", "learned", "--effort", "fast", *TEXT], 3, marks=slow),
    pytest.param(["quantize", "--to", "compressed/w8a8", "--method", "smoothquant", *TEXT], 4, marks=slow),
    pytest.param(["quantize", "--to", "awq/int4", "--method", "awq+gptq", "--group-size", "32", *TEXT], 4, marks=slow),
    pytest.param(["quantize", "--to", "iq2_xxs", "--calibration", "self", *TEXT], 4, marks=slow),
    pytest.param(
        ["tune qat", "--to", "q4_0", *TEXT, "--training-tokens", "2048", "--steps", "8", "--batch", "2"], 8, marks=slow
    ),
    pytest.param(
        ["tune qat", "--to", "q4_0", *TEXT, "--train", "all", "--optimizer", "adam-8bit", "--steps", "6"], 7, marks=slow
    ),
]


@pytest.mark.parametrize(("words", "each"), PLAIN)
def test_a_plain_run_goes_on_where_it_was_killed(words: list[str], each: int, model: Path, tmp_path: Path) -> None:
    check(words, model, tmp_path, each)


@pytest.mark.parametrize(("words", "each"), CALIBRATED)
def test_a_calibrated_run_goes_on_where_it_was_killed(words: list[str], each: int, small: Path, tmp_path: Path) -> None:
    said = check(words, small, tmp_path, each)
    assert any("block " in each for each in said)


@slow
def test_imatrix_goes_on_where_it_was_killed(small: Path, tmp_path: Path) -> None:
    said = check(["imatrix", *TEXT], small, tmp_path, 2, out="x.gguf")
    assert "after the statistics of block" in said[1]


@slow
def test_several_outputs_are_finished_one_by_one(small: Path, tmp_path: Path) -> None:
    words = ["quantize", "--to", "q8_0", "--to", "q4_0", "--to", "native/int8", "--calibration", "default", *TEXT]
    check(words, small, tmp_path, 3, out="all")


def test_a_finished_output_is_not_made_again(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed behind the new name: the same call gives the result, and clears up."""
    import bitsmith.work.folder as work

    with monkeypatch.context() as patch:
        patch.setattr(work.WorkFolder, "remove", lambda self: None)
        first = bitsmith.quantize(small, to="q8_0", out=tmp_path / "x.gguf")
    before = (tmp_path / "x.gguf").stat()
    assert find_leftovers(tmp_path)
    again = bitsmith.quantize(small, to="q8_0", out=tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").stat().st_mtime_ns == before.st_mtime_ns
    assert again.manifest == first.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    with pytest.raises(UsageError, match="exists already"):
        bitsmith.quantize(small, to="q8_0", out=tmp_path / "x.gguf")


def kept(words: list[str], at: int) -> None:
    assert start(words, at=at).returncode == -signal.SIGKILL


def test_damaged_bytes_are_made_again(model: Path, tmp_path: Path) -> None:
    words = ["quantize", str(model), "--to", "q4_k_m", "--out", str(tmp_path / "out.gguf")]
    kept(words, 20)
    (file,) = tmp_path.glob(".out.gguf.bitsmith.work/*/files/out.gguf")
    data = bytearray(file.read_bytes())
    for at in range(len(data) // 4, len(data), 5000):
        data[at] ^= 1
    file.write_bytes(data)
    assert start(words, at=0).returncode == 0
    bitsmith.quantize(model, to="q4_k_m", out=tmp_path / "whole.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@slow
def test_damaged_blocks_are_made_again(small: Path, tmp_path: Path) -> None:
    words = ["quantize", str(small), "--to", "q4_0", "--method", "gptq", *TEXT, "--out", str(tmp_path / "out.gguf")]
    kept(words, 9)
    (state,) = tmp_path.glob(".out.gguf.bitsmith.work/*/blocks.state")
    state.write_bytes(state.read_bytes()[:-100])
    done = start(words, at=0)
    assert done.returncode == 0
    assert "blocks.state of the kept work is damaged" in done.stdout
    whole = start([*words[:-1], tmp_path / "whole.gguf"], at=0)
    assert whole.returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_other_options_do_not_use_it(model: Path, tmp_path: Path) -> None:
    words = ["quantize", str(model), "--out", str(tmp_path / "out.gguf"), "--to"]
    kept([*words, "q4_k_m"], 5)
    done = start([*words, "q8_0"], at=0)
    assert done.returncode == 0
    assert "continuing" not in done.stderr
    assert "an interrupted run with other files, options or programs, which is not used" in done.stderr
    assert [each.kind for each in find_leftovers(tmp_path)] == ["work"]


def test_fresh_starts_again(model: Path, tmp_path: Path) -> None:
    words = ["quantize", str(model), "--out", str(tmp_path / "out.gguf"), "--to", "q4_k_m"]
    kept(words, 5)
    done = start([*words, "--fresh"], at=0)
    assert done.returncode == 0
    assert "continuing" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_an_interrupt_says_how_to_go_on(model: Path, tmp_path: Path) -> None:
    words = ["quantize", str(model), "--out", str(tmp_path / "out.gguf"), "--to", "q4_k_m"]
    done = start(words, at=5, sent="SIGTERM")
    assert done.returncode == 130
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Interrupted; what was done is kept in ")
    assert last.endswith("; the same command continues, and `bitsmith clean` removes it.")
    assert "Traceback" not in done.stderr
    again = start(words, at=0)
    assert again.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_clean_removes_what_is_left(model: Path, tmp_path: Path) -> None:
    kept(["quantize", str(model), "--out", str(tmp_path / "out.gguf"), "--to", "q4_k_m"], 5)
    listed = start(["clean", tmp_path, "--dry-run", "--json"], at=0)
    assert [(each["kind"], each["removed"]) for each in json.loads(listed.stdout)] == [("lock", False), ("work", False)]
    refused = start(["clean", tmp_path], at=0)
    assert refused.returncode == 2
    assert "give --yes" in " ".join(refused.stderr.split())
    done = start(["clean", tmp_path, "--yes"], at=0)
    assert "are free again" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_says_so_and_the_next_run_goes_on(model: Path, little_disk: Path, tmp_path: Path) -> None:
    """The disk fills while the run works: another program takes what was free."""
    out = little_disk / "out.gguf"
    filler = little_disk / "filler"
    program = (
        "import sys\n"
        "import bitsmith.pipeline.executor as executor\n"
        "from bitsmith.work import pace\n"
        "pace.LEAST_SECONDS, pace.SHARE = 0.0, 1e9\n"
        "usual, count = executor.PlanWriter._write, 0\n"
        "def write(self, chunk, encoded):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 12:\n"
        f"        with open({str(filler)!r}, 'wb', buffering=0) as file:\n"
        "            try:\n"
        "                while True:\n"
        "                    file.write(bytes(1 << 16))\n"
        "            except OSError:\n"
        "                pass\n"
        "    usual(self, chunk, encoded)\n"
        "executor.PlanWriter._write = write\n"
        "from bitsmith.cli.main import main\n"
        "main()\n"
    )
    words = ["quantize", str(model), "--to", "q8_0", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "out.gguf: cannot be written (No space left on device); no file has its final name" in said
    assert "Note: what was done is kept in" in said
    assert not out.exists()
    filler.unlink()
    again = start(["quantize", model, "--to", "q8_0", "--out", out], at=0)
    assert again.returncode == 0, again.stderr
    assert "continuing an interrupted run after" in again.stderr
    bitsmith.quantize(model, to="q8_0", out=tmp_path / "whole.gguf")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert os.listdir(little_disk) == ["out.gguf"]


def test_a_second_run_is_refused(model: Path, tmp_path: Path) -> None:
    from bitsmith.containers.claim import Claim
    from bitsmith.containers.output_names import OutputNames

    claim = Claim(OutputNames.of(tmp_path / "x.gguf", as_folder=False))
    with pytest.raises(UsageError, match=f"another run is writing this output .process {os.getpid()}"):
        bitsmith.quantize(model, to="q8_0", out=tmp_path / "x.gguf")
    claim.release()


def test_a_name_taken_meanwhile_loses_no_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user moves the file away that appeared; the next run has everything already."""
    import bitsmith.work.pace as pace

    monkeypatch.setattr(pace, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(pace, "SHARE", 1e9)
    out = tmp_path / "x.gguf"
    with pytest.raises(FileError, match="appeared while this run was working"):
        bitsmith.quantize(model, to="q8_0", out=out, on_plan=lambda _: out.write_bytes(b"precious"))
    assert out.read_bytes() == b"precious"
    out.unlink()
    told: list[str] = []
    bitsmith.quantize(model, to="q8_0", out=out, on_plan=lambda plan: told.extend(plan.told))
    assert "after 100 % of the weights" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
