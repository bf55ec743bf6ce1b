"""What quantizing a model on several workers takes: time, network and storage, of shapes alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitsmith.containers.gguf.blocks import CODECS
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.pipeline.estimate import seconds_per_weight
from bitsmith.pipeline.spread import round_graph
from bitsmith.planner.model_spec import find_model
from bitsmith.planner.network import Network
from bitsmith.planner.weights import gguf_types, parse_target
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.plan import PlannedTensor
from bitsmith.scale.simulation import Cluster, Need, Simulated, simulate
from bitsmith.scale.task import Given, Graph
from bitsmith.system.machine import cores
from bitsmith.system.options import check_arguments
from bitsmith.system.sizes import parse_size

SOURCE_BYTES = 2  # of a weight: bfloat16
LINK, STORAGE, DISK = "1.25GB", "5GB", "400MB"  # a second: 10 Gbit/s a machine; storage for all; the head's disk


@dataclass(frozen=True)
class SpreadPlan:
    """What quantizing on several workers is expected to take. Bytes and seconds.

    threads: of each worker
    tasks: of the graph; shards: of the source, of about 5 GB
    source, output: bytes of all weights
    rate: weights a second that one thread of this machine rounds, over all tensors
    alone: seconds with one worker
    """

    model: str
    target: str
    parameters: int
    workers: int
    threads: int
    tasks: int
    source: int
    output: int
    rate: float
    alone: Simulated
    spread: Simulated
    cluster: Cluster

    @property
    def speed_up(self) -> float:
        """Beside one worker."""
        return self.alone.seconds / self.spread.seconds

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "speed_up": self.speed_up}


def plan_spread(
    model: str | Path,
    *,
    to: str = "q4_k_m",
    workers: int = 1,
    threads: int | None = None,
    link: str = LINK,
    storage: str = STORAGE,
    disk: str = DISK,
) -> SpreadPlan:
    """Plan `quantize` on several workers: the graph that it would run, in virtual time.

    model: as for `bitsmith.plan`: a folder, config.json alone, a hub id, a built-in shape
    to: a GGUF format
    threads: of each worker; None: as many as this machine has cores
    link, storage, disk: bytes a second of each machine's connection, of the storage for all, and of the head's disk
    Rounding is timed on this machine, with one thread. Raises UsageError; errors of reading the model.
    """
    check_arguments(plan_spread, locals())
    count = threads or cores()
    shape = _shape(model, to)
    rates = _rates(link, storage, disk)
    seconds = _seconds(shape.tensors)
    graph, needs = shape.graph(seconds, count)
    cluster = _cluster(workers, rates)
    parameters = sum(each.info.parameters for each in shape.tensors)
    working = sum(seconds[each.info.layout] * each.info.parameters for each in shape.tensors)
    return SpreadPlan(
        model=shape.name,
        target=shape.target,
        parameters=parameters,
        workers=workers,
        threads=count,
        tasks=len(graph.tasks),
        source=SOURCE_BYTES * parameters,
        output=sum(each.info.nbytes for each in shape.tensors),
        rate=parameters / working,
        alone=simulate(graph, needs, _cluster(1, rates)),
        spread=simulate(graph, needs, cluster),
        cluster=cluster,
    )


def planned_graph(
    model: str | Path, *, to: str = "q4_k_m", workers: int = 1, threads: int = 1
) -> tuple[Graph, dict[str, Need], Cluster]:
    """The graph of `plan_spread`, what each of its tasks takes, by key, and where it runs."""
    shape = _shape(model, to)
    return (*shape.graph(_seconds(shape.tensors), threads), _cluster(workers, _rates(LINK, STORAGE, DISK)))


@dataclass(frozen=True)
class _Shape:
    name: str
    target: str
    tensors: list[PlannedTensor]

    def graph(self, seconds: Mapping[str, float], threads: int) -> tuple[Graph, dict[str, Need]]:
        graph = round_graph(self.tensors, {}, Given({"plan": self.name}))
        return graph, dict(_needs(graph, self.tensors, seconds, threads))


def _shape(model: str | Path, to: str) -> _Shape:
    target = parse_target(to)
    if target.container != "gguf":
        raise UnsupportedError(f"--format={to}: several workers are planned for GGUF formats alone; give q4_k_m.")
    with tempfile.TemporaryDirectory() as scratch:
        network = find_model(model, scratch=Path(scratch)).network
    return _Shape(network.name, target.name, list(_tensors(network, gguf_types(network, target))))


def _rates(link: str, storage: str, disk: str) -> dict[str, float]:
    return {name: float(_size(name, text)) for name, text in (("link", link), ("storage", storage), ("disk", disk))}


def _cluster(workers: int, rates: Mapping[str, float]) -> Cluster:
    if workers < 1:
        raise UsageError(f"--workers={workers}: expected 1 or more.")
    return Cluster(workers, **rates)


def _size(name: str, text: str) -> int:
    try:
        return parse_size(text)
    except UsageError as error:
        raise error.at(f"--{name}") from error


def _tensors(network: Network, types: Mapping[str, str]) -> Iterator[PlannedTensor]:
    """The tensors of the output as plans have them, without their bytes."""
    for tensor in network.tensors:
        type, nbytes = types[tensor.name], _nbytes(tensor, types[tensor.name])
        codec = CODECS.get(type)
        info = TensorInfo(tensor.name, tensor.shape, type, nbytes)
        yield PlannedTensor(
            info, tensor.name, "bf16", {}, "", format=None if codec is None else codec.format, codec=codec
        )


def _nbytes(tensor: TensorInfo, type: str) -> int:
    from bitsmith.containers.gguf.types import TYPES

    return TYPES[type].row_bytes(tensor.cols) * tensor.rows


def _seconds(tensors: list[PlannedTensor]) -> dict[str, float]:
    """Seconds a weight of one thread, by type, measured on this machine in processor time."""
    found: dict[str, float] = {}
    for each in tensors:
        if each.info.layout not in found and each.info.rows > 1:
            found[each.info.layout] = seconds_per_weight(each, importance=False, clock=time.thread_time)
    return {each.info.layout: 0.0 for each in tensors} | found


def _needs(
    graph: Graph, tensors: list[PlannedTensor], seconds: Mapping[str, float], threads: int
) -> Iterator[tuple[str, Need]]:
    """What each task takes, by its key."""
    by_name = {each.info.name: each for each in tensors}
    for task in graph.tasks:
        if task.kind == "pipeline.hash":
            size = by_name[task.arguments["tensor"]].info.parameters * SOURCE_BYTES
            yield task.key, Need(size, 0.0, 0.0)
            continue
        need = Need(0.0, 0.0, 0.0)
        for name, start, stop in task.arguments["pieces"]:
            info, rows = by_name[name].info, stop - start
            weights, share = rows * info.cols, rows / max(info.rows, 1)
            need = Need(
                need.read + SOURCE_BYTES * weights,
                need.seconds + seconds[info.layout] * weights / threads,
                need.written + share * info.nbytes,
            )
        yield task.key, need
