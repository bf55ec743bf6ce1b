"""The functions of tasks of `quantize` and `convert`: they run on workers, which know the model by its name alone."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from bitsmith.pipeline.chunks import Chunk, chunks_of
from bitsmith.pipeline.encode import Encoded, encode_chunk, prepared
from bitsmith.pipeline.planned import plan_of
from bitsmith.quant.tensor import PackedTensor
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.scale.task import Function, Place, Result
from bitsmith.work.state import State, dtype_of


def _plan(described: State) -> Plan:
    return plan_of(json.dumps(described.values, sort_keys=True))


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


def _in_blocks(name: str) -> Function:
    """A function of `block_tasks`, which needs torch: imported when it is called."""

    def call(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
        from bitsmith.pipeline.block_tasks import BLOCK_TASKS

        return BLOCK_TASKS[name](arguments, inputs, place)

    return call


TASKS: dict[str, Function] = {
    "round": round_pieces,
    "hash": hash_source,
    **{name: _in_blocks(name) for name in ("embed", "sums", "linears", "advance")},
}
