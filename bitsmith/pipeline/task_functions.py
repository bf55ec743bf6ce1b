"""The functions of tasks of `quantize` and `convert`: they run on workers, which know the model by its name alone."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from bitsmith.containers.base import WholeTensorCodec
from bitsmith.containers.output import HashedBytes
from bitsmith.pipeline.chunks import Chunk, chunks_of
from bitsmith.pipeline.encode import Encoded, encode_chunk, prepared
from bitsmith.pipeline.executor import MadeRows
from bitsmith.pipeline.planned import plan_of
from bitsmith.quant.tensor import PackedTensor
from bitsmith.recipe.plan import Plan, PlannedTensor
from bitsmith.scale.task import Function, Place, Result
from bitsmith.work.state import State, Streamed


def _plan(described: State) -> Plan:
    return plan_of(json.dumps(described.values, sort_keys=True))


def round_pieces(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """Nearest codes of some rows of some tensors, as stored bytes.

    arguments: pieces: [tensor, first row, the one behind the last] each
    inputs: the description of the plan; then the importance, by output name, if there is one
    Arrays are the bytes of each part of each piece, in file order.
    """
    plan = _plan(inputs[0])
    found: list[dict[str, Any]] = []
    arrays: dict[str, Streamed] = {}
    sources: dict[str, str] = {}
    by_name = {each.info.name: each for each in plan.tensors}
    for name, start, stop in arguments["pieces"]:
        planned = by_name[name]
        columns = inputs[1].array(name) if len(inputs) > 1 and name in inputs[1] else None
        digest = hashlib.sha256()
        made = list(_encoded(plan, planned, columns, (start, stop), digest, place))
        for part, data in _in_file_order(planned, [each.parts for each in made]).items():
            arrays[f"{len(found)}.{part}"] = _streamed(data)
        sums = [[each.squared_error.hex(), each.squared_weight.hex(), bool(each.kept)] for each in made]
        found.append({"tensor": name, "stop": stop, "parts": list(planned.parts), "chunks": sums})
        if start == 0 and stop == planned.info.rows:
            sources[name] = digest.hexdigest()
    return {"rows": found, "sources": sources}, arrays


def _in_file_order(planned: PlannedTensor, slabs: list[Mapping[str, np.ndarray]]) -> dict[str, list[np.ndarray]]:
    """The stored bytes of each part of some rows; a codec that does not keep the order of rows joins its slabs."""
    if isinstance(planned.codec, WholeTensorCodec):
        return {part: [data] for part, data in planned.codec.join(slabs).items()}
    return {part: [slab[part] for slab in slabs] for part in planned.parts}


def _streamed(data: list[np.ndarray]) -> Streamed:
    return Streamed((sum(each.nbytes for each in data),), np.dtype(np.uint8), lambda: map(_bytes, data))


def _encoded(
    plan: Plan,
    planned: PlannedTensor,
    columns: np.ndarray | None,
    span: tuple[int, int],
    digest: Any,
    place: Place,
) -> Iterator[Encoded]:
    """Some rows of a tensor, rounded chunk by chunk; the bytes of their source are added to `digest`."""
    reader = plan.checkpoint.reader
    ready = prepared(reader, planned, columns)
    chunks = _within(span, chunks_of([ready], {} if columns is None else {planned.info.name: columns}))

    def read(chunk: Chunk) -> PackedTensor | None:
        if planned.source is None:
            return None
        packed = reader.packed(planned.source, chunk.start, chunk.stop)
        for data in packed.parts.values():
            digest.update(_bytes(data).data)
        return packed

    waiting: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(place.threads) as pool:
        for chunk in chunks:
            waiting.append(pool.submit(encode_chunk, reader, chunk, read(chunk)))
            if len(waiting) > 2 * place.threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _within(span: tuple[int, int], chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """What chunks have of the rows of `span`; the one chunk of a tensor without rows."""
    for chunk in chunks:
        start, stop = max(chunk.start, span[0]), min(chunk.stop, span[1])
        if start < stop or span == (0, 0):
            yield replace(chunk, start=start, stop=stop)


def made_rows(state: State) -> list[MadeRows]:
    """What a result of `round_pieces` holds, each with the hashes that its bytes should have."""
    found = []
    for at, told in enumerate(state.values["rows"]):
        names = {part: f"{at}.{part}" for part in told["parts"]}
        parts = {
            part: HashedBytes(partial(state.pieces, name), state.shape(name)[0], state.sha256(name))
            for part, name in names.items()
        }
        sums = [(float.fromhex(error), float.fromhex(weight), kept is True) for error, weight, kept in told["chunks"]]
        found.append(MadeRows(str(told["tensor"]), int(told["stop"]), parts, sums))
    return found


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
    return {"sources": {name: digest.hexdigest()}, "rows": []}, {}


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
