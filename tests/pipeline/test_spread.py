"""Runs with several workers: the same bytes as in one process, whatever dies or is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration import parts
from bitsmith.errors import FileError, TensorError, UsageError
from bitsmith.pipeline import chunks, executor, planned, spread, task_functions
from bitsmith.scale.executors.local import Local
from bitsmith.scale.store import FolderStore
from bitsmith.scale.task import Graph, Task
from bitsmith.work.leftovers import find_leftovers
from bitsmith.work.pace import Pace
from tests.pipeline.test_resume import tree
from tests.tiny import make_folder

TARGETS = ("q4_k_m", "q8_0", "gptq/int4", "awq/int4", "bnb/nf4-dq", "compressed/fp8", "bf16", "native/int4")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks a tensor, and several tasks a model."""
    monkeypatch.setattr(chunks, "CHUNK_WEIGHTS", 1 << 14)
    monkeypatch.setattr("bitsmith.pipeline.encode.CHUNK_WEIGHTS", 1 << 14)
    monkeypatch.setattr(spread, "PIECE_WEIGHTS", 1 << 15)


def made(model: Path, folder: Path, to: str, **words: Any) -> dict[str, bytes]:
    """All files of a folder in which a model was quantized."""
    folder.mkdir()
    bitsmith.quantize(model, to=to, out=folder / ("out" if "/" in to else "out.gguf"), threads=1, **words)
    return tree(folder)


@pytest.mark.parametrize("to", TARGETS)
def test_bytes_are_those_of_one_process(tiny: Path, tmp_path: Path, to: str) -> None:
    alone = made(tiny, tmp_path / "alone", to)
    assert made(tiny, tmp_path / "tasks", to, executor="local") == alone
    assert made(tiny, tmp_path / "memory", to, executor="local", work=f"memory://{tmp_path.name}") == alone


def test_with_importance(tiny: Path, tmp_path: Path) -> None:
    importance = bitsmith.imatrix(tiny, out=tmp_path / "i.gguf", calibration_tokens=512, threads=1).out
    alone = made(tiny, tmp_path / "alone", "iq2_xs", calibration=importance)
    assert made(tiny, tmp_path / "tasks", "iq2_xs", calibration=importance, executor="local") == alone


def test_what_a_calibrated_method_leaves_is_spread(tiny: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"method": "gptq", "calibration_tokens": 512}
    alone = made(tiny, tmp_path / "alone", "q4_0", **words)
    assert made(tiny, tmp_path / "tasks", "q4_0", executor="local", **words) == alone


def test_convert_too(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    bitsmith.convert(tiny, to="gguf/f16", out=tmp_path / "one" / "m.gguf")
    bitsmith.convert(tiny, to="gguf/f16", out=tmp_path / "two" / "m.gguf", executor="local")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def cut_in_pieces(tiny: Path) -> Graph:
    graphs: list[Graph] = []
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Local, "run", lambda self, graph, store: (graphs.append(graph), _interrupt()))
        bitsmith.quantize(tiny, to="q4_k_m", out=tiny.parent / "cut.gguf", executor="local")
    return graphs[0]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_tasks_are_of_even_size_and_cut_tensors_have_a_hash(tiny: Path) -> None:
    graph = cut_in_pieces(tiny)
    rounds = [task for task in graph.tasks if task.kind == "pipeline.round"]
    assert sum(task.kind == "pipeline.hash" for task in graph.tasks) >= 2  # embedding and head
    assert len(rounds) > 8
    assert all(task.cost <= (1 << 15) + (1 << 14) for task in rounds)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of tasks that this process runs. The fifth is stopped, as by Ctrl-C."""
    from bitsmith.scale import results
    from bitsmith.scale.working import run_task

    found: list[str] = []

    def counted(task: Task, *rest: Any) -> None:
        found.append(task.key)
        if len(found) == 5:
            raise KeyboardInterrupt
        run_task(task, *rest)

    monkeypatch.setattr(results, "run_task", counted)
    return found


def test_a_head_that_is_stopped_goes_on(tiny: Path, tmp_path: Path, ran: list[str]) -> None:
    alone = made(tiny, tmp_path / "alone", "q4_k_m")
    with pytest.raises(KeyboardInterrupt):
        made(tiny, tmp_path / "tasks", "q4_k_m", executor="local")
    (left,) = find_leftovers(tmp_path / "tasks")
    assert left.kind == "work"
    out = tmp_path / "tasks" / "out.gguf"
    bitsmith.quantize(tiny, to="q4_k_m", out=out, executor="local", threads=1)
    assert tree(tmp_path / "tasks") == alone
    assert len(set(ran)) == len(ran) - 1  # only the one that was stopped ran twice


def test_fresh_work_takes_nothing_from_storage(tiny: Path, tmp_path: Path, ran: list[str]) -> None:
    alone = made(tiny, tmp_path / "alone", "q4_k_m")
    words: dict[str, Any] = {"executor": "local", "work": str(tmp_path / "storage")}
    with pytest.raises(KeyboardInterrupt):
        made(tiny, tmp_path / "tasks", "q4_k_m", **words)
    assert list((tmp_path / "storage").rglob("*.state"))
    bitsmith.quantize(tiny, to="q4_k_m", out=tmp_path / "tasks" / "out.gguf", threads=1, fresh=True, **words)
    assert tree(tmp_path / "tasks") == alone
    assert set(ran[:5]) <= set(ran[5:])  # all are made again
    assert not list((tmp_path / "storage").rglob("*.state"))


def test_workers_that_are_killed(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "m", num_hidden_layers=4)
    alone = made(model, tmp_path / "alone", "q4_k_m")
    killed: list[int] = []
    ended = threading.Event()

    def kill() -> None:
        while len(killed) < 6 and not ended.wait(0.7):
            for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
                words = Path(f"/proc/{child}/cmdline")
                if words.exists() and b"worker" in words.read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    killed.append(int(child))

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert made(model, tmp_path / "tasks", "q4_k_m", executor="local", workers=2) == alone
    finally:
        ended.set()  # it must not live on and kill what later tests start
        killer.join()
    assert killed


def test_a_head_that_is_killed(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "m", num_hidden_layers=4)
    alone = made(model, tmp_path / "alone", "q4_k_m")
    folder = tmp_path / "tasks"
    folder.mkdir()
    code = f"""
from bitsmith.pipeline import chunks, encode, spread
chunks.CHUNK_WEIGHTS = encode.CHUNK_WEIGHTS = 1 << 14
spread.PIECE_WEIGHTS = 1 << 15
import bitsmith
out = {str(folder / "out.gguf")!r}
bitsmith.quantize({str(model)!r}, to="q4_k_m", out=out, threads=1, executor="local", workers=2)
"""
    head = subprocess.Popen([sys.executable, "-c", code])
    while len(list(folder.rglob("tasks/*.state"))) < 5 and head.poll() is None:
        time.sleep(0.02)
    workers = Path(f"/proc/{head.pid}/task/{head.pid}/children").read_text().split()
    head.kill()
    head.wait()
    assert len(workers) == 2
    for _ in range(600):
        if not any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlive their head")
    assert not (folder / "out.gguf").exists()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert tree(folder) == alone


@pytest.mark.parametrize("to", ["q4_k_m", "gptq/int4"])
@pytest.mark.parametrize("at", [20, -40])
def test_results_that_are_damaged(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, at: int
) -> None:
    """at: in an array, or in what says where arrays are"""
    alone = made(tiny, tmp_path / "alone", to)
    write, count = FolderStore.write, [0]

    def damaging(self: FolderStore, key: str, values: Any, arrays: Any) -> None:
        write(self, key, values, arrays)
        count[0] += 1
        if count[0] % 4 == 0:
            path = self.folder / f"{key}.state"
            data = bytearray(path.read_bytes())
            data[at] ^= 1
            path.write_bytes(data)

    monkeypatch.setattr(FolderStore, "write", damaging)
    assert made(tiny, tmp_path / "tasks", to, executor="local") == alone
    assert count[0] > 8


@pytest.mark.parametrize("chunks_done", [1, 2, 3, 4, 5])
def test_workers_go_on_where_one_process_stopped(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks_done: int
) -> None:
    alone = made(tiny, tmp_path / "alone", "q4_k_m")
    monkeypatch.setattr(Pace, "due", True)
    keep, left = executor.PlanWriter.keep_if_due, [chunks_done]

    def stopping(self: executor.PlanWriter) -> bool:
        found = keep(self)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(executor.PlanWriter, "keep_if_due", stopping)
    with pytest.raises(KeyboardInterrupt):
        made(tiny, tmp_path / "tasks", "q4_k_m")
    (left_there,) = find_leftovers(tmp_path / "tasks")
    assert left_there.kind == "work"
    out = tmp_path / "tasks" / "out.gguf"
    bitsmith.quantize(tiny, to="q4_k_m", out=out, executor="local", threads=1)
    assert tree(tmp_path / "tasks") == alone


def test_slurm_scripts_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = made(tiny, tmp_path / "alone", "q4_k_m")
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(bitsmith.__file__).parents[1]))
    found = bitsmith.quantize(
        tiny, to="q4_k_m", out=Path("job/out.gguf"), executor="slurm", workers=3, work="shared", threads=1
    )
    scripts = tmp_path / "job" / "out.gguf.slurm"
    assert found.submitted == scripts / "submit.sh"
    assert not (tmp_path / "job" / "out.gguf").exists()
    text = (scripts / "members.sbatch").read_text()
    assert "#SBATCH --array=0-2\n" in text
    assert "sbatch --dependency=afterany" in (scripts / "submit.sh").read_text()
    for member in (2, 0):  # one of them never runs
        done = subprocess.run(
            ["bash", scripts / "members.sbatch"], env={**os.environ, "SLURM_ARRAY_TASK_ID": str(member)}, check=True
        )
        assert done.returncode == 0
    subprocess.run(["bash", scripts / "join.sbatch"], check=True)
    assert (tmp_path / "job" / "out.gguf").read_bytes() == alone["out.gguf"]
    assert find_leftovers(tmp_path / "job") == []
    assert not any(path.is_file() for path in (tmp_path / "shared").rglob("*"))


def test_a_worker_with_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    graph = cut_in_pieces(tiny)
    store = FolderStore(tmp_path / "store")
    for key, given in graph.given.items():
        store.write(key, given.values, given.arrays)
    weights = tiny / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[100_000] ^= 1
    weights.write_bytes(data)
    planned.plan_of.cache_clear()
    with store.read(graph.tasks[0].inputs[0]) as described, pytest.raises(FileError, match="another model"):
        task_functions._plan(described)


def test_errors_in_weights_are_the_same(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = make_folder(tmp_path / "m")
    found = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    found[name] = found[name].copy()
    found[name][3, 5] = np.nan
    save_file(found, model / "model.safetensors", metadata={"format": "pt"})
    for words in ({}, {"executor": "local"}, {"executor": "local", "workers": 2}):
        with pytest.raises(TensorError, match=f"{name}: nan at row 3, column 5"):
            bitsmith.quantize(model, to="q4_0", out=tmp_path / "out.gguf", threads=1, **words)
        assert find_leftovers(tmp_path) == []


def test_options(tiny: Path) -> None:
    for words, match in (
        ({"workers": 2}, "workers=2 is for several workers"),
        ({"work": "x"}, "there is no executor"),
        ({"executor": "local", "workers": 0}, "workers=0: expected 1 or more"),
        ({"executor": "local", "workers": 2, "work": "memory://x"}, "one process only"),
        ({"executor": "local", "work": "nosuch://x"}, "nosuch"),
    ):
        with pytest.raises(UsageError, match=match):
            bitsmith.quantize(tiny, to="q4_0", out=tiny.parent / "out.gguf", **words)


@pytest.mark.skipif("ray" in sys.modules, reason="one Ray a process")
def test_ray(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    alone = made(tiny, tmp_path / "alone", "q4_k_m")
    code = f"""
import os, json
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 1}})
cluster.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = cluster.address
import bitsmith
from bitsmith.pipeline import spread
spread.PIECE_WEIGHTS = 1 << 15
bitsmith.quantize({str(tiny)!r}, to="q4_k_m", out={str(tmp_path / "out.gguf")!r}, executor="ray")
cluster.shutdown()
print(json.dumps("done"))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout.splitlines()[-1]) == "done"
    assert (tmp_path / "out.gguf").read_bytes() == alone["out.gguf"]


GPTQ: dict[str, Any] = {"method": "gptq", "calibration_tokens": 1024, "calibration_context": 64}


@pytest.mark.parametrize("to", ["gptq/int4", "q4_k_m", "compressed/w8a8", "iq2_xs"])
def test_blocks_on_workers(tmp_path: Path, to: str) -> None:
    model = make_folder(tmp_path / "m", hidden_size=256, intermediate_size=256)
    alone = made(model, tmp_path / "alone", to, **GPTQ)
    assert made(model, tmp_path / "tasks", to, executor="local", **GPTQ) == alone  # one part of the windows


def test_workers_round_a_table_that_is_the_head_for_the_head(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "m", tie_word_embeddings=True)
    alone = made(model, tmp_path / "alone", "q4_0", pure=True, **GPTQ)
    assert made(model, tmp_path / "tasks", "q4_0", pure=True, executor="local", **GPTQ) == alone


def test_hessians_in_parts(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = made(tiny, tmp_path / "alone", "gptq/int4", **GPTQ)
    monkeypatch.setattr(parts, "PART_TOKENS", 256)
    monkeypatch.setattr(parts, "BATCH_TOKENS", 128)
    one = made(tiny, tmp_path / "one", "gptq/int4", executor="local", **GPTQ)
    assert made(tiny, tmp_path / "two", "gptq/int4", executor="local", workers=2, **GPTQ) == one
    assert one.keys() == alone.keys()
    weights = [next(data for name, data in found.items() if name.endswith(".safetensors")) for found in (one, alone)]
    same = np.frombuffer(weights[0], np.uint8) == np.frombuffer(weights[1], np.uint8)
    assert same.mean() > 0.98  # sums in another order: last bits, and here and there another code


def test_blocks_on_workers_go_on(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitsmith.scale import results
    from bitsmith.scale.working import run_task

    alone = made(tiny, tmp_path / "alone", "gptq/int4", **GPTQ)
    ran: list[Task] = []

    def counted(task: Task, *rest: Any) -> None:
        if task.kind not in ("pipeline.round", "pipeline.hash"):
            ran.append(task)
        if len(ran) == 15:
            raise KeyboardInterrupt
        run_task(task, *rest)

    monkeypatch.setattr(results, "run_task", counted)
    with pytest.raises(KeyboardInterrupt):
        made(tiny, tmp_path / "tasks", "gptq/int4", executor="local", **GPTQ)
    assert ran[14].arguments["layer"] == 1
    ran.append(ran[0])  # it does not stop again
    bitsmith.quantize(tiny, to="gptq/int4", out=tmp_path / "tasks" / "out", executor="local", threads=1, **GPTQ)
    assert tree(tmp_path / "tasks") == alone
    assert len(ran) > 20
    assert not {task.key for task in ran[16:]} & {task.key for task in ran[:14]}


def test_results_between_blocks_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    present: list[int] = []
    write = FolderStore.write

    def counted(self: FolderStore, key: str, *rest: Any) -> None:
        write(self, key, *rest)
        present.append(len(self.present()))

    monkeypatch.setattr(FolderStore, "write", counted)
    for when in ("due", "due_cheaply"):  # what is written is dropped at once, however fast the machine is
        monkeypatch.setattr(Pace, when, property(lambda self: True))
    most = []
    for layers in (3, 6):
        model = make_folder(tmp_path / f"m{layers}", num_hidden_layers=layers)
        present.clear()
        made(model, tmp_path / f"tasks{layers}", "gptq/int4", executor="local", **GPTQ)
        most.append(max(present))
    assert most[1] - most[0] == 3 * 6  # codes alone; those of k and v are one result


def test_blocks_that_stay_on_the_head(tiny: Path, tmp_path: Path) -> None:
    words = {**GPTQ, "method": "awq+gptq"}
    alone = made(tiny, tmp_path / "alone", "awq/int4", **words)
    assert made(tiny, tmp_path / "tasks", "awq/int4", executor="local", **words) == alone
