"""The functions of tasks of `quantize` and `convert`: they run on workers, which know the model by its name alone."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from bitsmith.errors import FileError
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.pipeline.chunks import Chunk, chunks_of
from bitsmith.pipeline.encode import Encoded, encode_chunk, prepared
from bitsmith.quant.tensor import PackedTensor
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.copies import SAME, as_conversion, assign_copy
from bitsmith.recipe.plan import Assignment, Plan, PlannedTensor
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import QUANTIZE, PlanOptions
from bitsmith.recipe.target import Target
from bitsmith.scale.task import Function, Place, Result
from bitsmith.work.key import head_hash
from bitsmith.work.state import State, dtype_of

_FIELDS = ("source", "source_layout", "order", "copied", "together", "own", "outside")  # of tensors, beside their info


@dataclass(frozen=True)
class Description:
    """A plan as a worker can make it again.

    model, revision: as the user gave them
    to, options, command: of its assignment
    input_absmax: see `Plan.of`
    """

    model: str
    revision: str | None
    to: str
    options: Mapping[str, Any]
    command: str
    input_absmax: Mapping[str, float] | None

    @classmethod
    def of(cls, plan: Plan, model: str, revision: str | None, input_absmax: Mapping[str, float] | None) -> Description:
        """The description of a plan. input_absmax: with which it was made"""
        assignment = plan.assignment
        absmax = None if input_absmax is None else {name: float(seen) for name, seen in input_absmax.items()}
        return cls(model, revision, str(plan.target), asdict(assignment.options), assignment.command, absmax)

    def to_dict(self, plan: Plan) -> dict[str, Any]:
        """Plain values for JSON, with what a worker compares with its own plan."""
        return {**vars(self), "plan": digest_of(plan), "files": files_of(plan.checkpoint)}

    def plan(self) -> Plan:
        """The plan. Raises as opening a model and as `assign`."""
        checkpoint = open_checkpoint(self.model, revision=self.revision)
        return Plan.of(self._assignment(checkpoint), input_absmax=self.input_absmax)

    def _assignment(self, checkpoint: Checkpoint) -> Assignment:
        values: dict[str, Any] = dict(self.options)
        record = values["calibration"]
        values["calibration"] = None if record is None else CalibrationRecord(**record)
        values |= {name: tuple(values[name]) for name in ("rules", "keep")}
        options = PlanOptions(**values)
        target = Target(*self.to.split("/", 1))
        found = assign_copy(checkpoint, options) if target.name == SAME else assign(checkpoint, target, options)
        return found if self.command == QUANTIZE else as_conversion(found)


def digest_of(plan: Plan) -> str:
    """A hash of what a plan does with each tensor."""
    digest = hashlib.sha256()
    for each in plan.tensors:
        known = [str(vars(each)[name]) for name in _FIELDS]
        digest.update(repr((each.info, known, each.inputs, str(dict(each.parts)))).encode())
    return digest.hexdigest()


def files_of(checkpoint: Checkpoint) -> list[list[Any]]:
    """Name, size and hash of the beginning of every file of the weights: the same wherever they lie."""
    return [[path.name, path.stat().st_size, head_hash(path)] for path in checkpoint.source.files]


@lru_cache(maxsize=2)
def _plan_of(text: str) -> Plan:
    """The plan of a description in JSON, made once in a process. Raises FileError if it is another here."""
    told = json.loads(text)
    wanted, files = told.pop("plan"), told.pop("files")
    plan = Description(**told).plan()
    if files_of(plan.checkpoint) != files:
        raise FileError(f"{told['model']} is another model where this worker runs; give it the same files.")
    if digest_of(plan) != wanted:
        raise FileError(f"{told['model']}: this worker plans other types than the run; give it the same files.")
    return plan


def _plan(described: State) -> Plan:
    return _plan_of(json.dumps(described.values, sort_keys=True))


def round_pieces(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """Nearest codes of some chunks of some tensors, as stored bytes.

    arguments: pieces: [tensor, first chunk, the one behind the last] each
    inputs: the description of the plan; then the importance, by output name, if there is one
    """
    plan = _plan(inputs[0])
    found: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    sources: dict[str, str] = {}
    by_name = {each.info.name: each for each in plan.tensors}
    for name, first, last in arguments["pieces"]:
        columns = inputs[1].array(name) if len(inputs) > 1 and name in inputs[1] else None
        digest = hashlib.sha256()
        for chunk, encoded in _encoded(plan, by_name[name], columns, (first, last), digest, place):
            found.append(_told(chunk, encoded))
            arrays |= {f"{len(found) - 1}.{part}": _bytes(data) for part, data in encoded.parts.items()}
        if first == 0 and chunk.stop == chunk.planned.info.rows:
            sources[name] = digest.hexdigest()
    return {"chunks": found, "sources": sources}, arrays


def _encoded(
    plan: Plan,
    planned: PlannedTensor,
    columns: np.ndarray | None,
    span: tuple[int, int],
    digest: Any,
    place: Place,
) -> Iterator[tuple[Chunk, Encoded]]:
    """Some chunks of a tensor, rounded; the bytes of their source are added to `digest`."""
    reader = plan.checkpoint.reader
    ready = prepared(reader, planned, columns)
    chunks = islice(chunks_of([ready], {} if columns is None else {planned.info.name: columns}), *span)

    def read(chunk: Chunk) -> PackedTensor | None:
        if planned.source is None:
            return None
        packed = reader.packed(planned.source, chunk.start, chunk.stop)
        for data in packed.parts.values():
            digest.update(_bytes(data).data)
        return packed

    waiting: deque[tuple[Chunk, Future[Encoded]]] = deque()
    with ThreadPoolExecutor(place.threads) as pool:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(encode_chunk, reader, chunk, read(chunk))))
            if len(waiting) > 2 * place.threads:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        for oldest, future in waiting:
            yield oldest, future.result()


def _told(chunk: Chunk, encoded: Encoded) -> dict[str, Any]:
    return {
        "tensor": chunk.planned.info.name,
        "start": chunk.start,
        "stop": chunk.stop,
        "error": encoded.squared_error.hex(),
        "weight": encoded.squared_weight.hex(),
        "kept": bool(encoded.kept),
        "parts": {part: [str(data.dtype), list(data.shape)] for part, data in encoded.parts.items()},
    }


def encoded_of(state: State, at: int) -> Encoded:
    """Chunk number `at` of a result of `round_pieces`."""
    told = state.values["chunks"][at]
    parts = {
        part: state.array(f"{at}.{part}").view(dtype_of(dtype)).reshape(shape)
        for part, (dtype, shape) in told["parts"].items()
    }
    return Encoded(parts, float.fromhex(told["error"]), float.fromhex(told["weight"]), told["kept"] is True)


def hash_source(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """The hash of the stored bytes of a tensor's source, for a tensor that several tasks round.

    arguments: tensor, its name in the output
    inputs: the description of the plan
    """
    plan, name = _plan(inputs[0]), arguments["tensor"]
    planned = next(each for each in plan.tensors if each.info.name == name)
    digest = hashlib.sha256()
    assert planned.source is not None
    for chunk in chunks_of([planned], {}):
        for data in plan.checkpoint.reader.packed(planned.source, chunk.start, chunk.stop).parts.values():
            digest.update(_bytes(data).data)
    return {"sources": {name: digest.hexdigest()}, "chunks": []}, {}


def _bytes(data: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


TASKS: dict[str, Function] = {"round": round_pieces, "hash": hash_source}
