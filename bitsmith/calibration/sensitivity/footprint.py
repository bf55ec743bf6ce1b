"""What a search of types takes of this machine: peak memory and time, computed from shapes before the model is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bitsmith.calibration.cost import products_per_second
from bitsmith.calibration.footprint import torch_memory
from bitsmith.calibration.need import Need
from bitsmith.calibration.resources import Resources
from bitsmith.errors import ResourceError
from bitsmith.models.arch.block import linear_groups, linear_shapes
from bitsmith.models.arch.config import ModelConfig
from bitsmith.recipe.allocation.units import Unit
from bitsmith.system.machine import cores
from bitsmith.system.pressure import Room, memory_now, rooms
from bitsmith.system.sizes import human_bytes, human_seconds

BATCH_TOKENS = 2048
LOGITS = 1 << 26  # numbers of logits that exist at a time; a whole window has more, where the vocabulary is large
HELD = 32 << 20  # numbers of gradients that are held at a time
KEPT = 1 << 30  # bytes of activations; with more, blocks are computed again in the backward pass
ACTIVATIONS = 32  # numbers that a block keeps for the backward pass, for each token and hidden feature: an upper bound
LEAST_ROWS = 32  # of each matrix, whose rounding errors are held
_MOST_ERRORS = 4 << 30  # bytes of rounding errors that are held at a time; of larger models some rows of each matrix
_LOGITS_ALIVE = 5  # logits, their gradient, probabilities, their roots, random numbers: float32
_GRADIENT = 10  # bytes a number of gradients that is held: itself, in float32, and squared
_SHAPES = 370_000_000  # bytes of oneDNN's kernels for as many shapes as experts get numbers of tokens
_PASSES = 3  # products of a forward and a backward pass, in those of a forward pass
_ROUND_SECONDS = 16e-9  # to round a weight to a type, one thread
_GPTQ_ROWS, _GPTQ_WORK = 2 * 32, 4.5  # rows of a matrix, in two types; products of each in those with the Hessian
_FACTOR_WORK = 2.0  # in products of two matrices of the Hessian's size


def errors_limit(memory: int | None) -> int:
    """Bytes of rounding errors that are held, whatever memory is free. memory: what the user gave, or None"""
    return memory or _MOST_ERRORS


def row_share(nbytes: int, memory: int | None) -> float:
    """The share of the rows of each matrix whose rounding errors are held: 1.0 if all are.

    nbytes: of all rounding errors; memory: see `errors_limit`
    """
    return min(1.0, errors_limit(memory) / max(nbytes, 1))


def gram_bytes(config: ModelConfig) -> int:
    """Bytes of the Gram matrices of all inputs of blocks, float32."""
    return sum(4 * cols**2 for cols in _inputs(config))


def _inputs(config: ModelConfig) -> Iterator[int]:
    for layer in range(config.layers):
        shapes = linear_shapes(config, layer)
        yield from (shapes[group.linears[0]][1] for group in linear_groups(config, layer))


@dataclass(frozen=True)
class Search:
    """A search of types.

    windows, measured_on: numbers of windows that costs are measured on, and true divergences
    context: tokens of a window
    anchors: whether there is a second round around chosen types
    gptq: whether the share of the error that GPTQ leaves is measured
    error_bytes: of a number of a rounding error
    """

    config: ModelConfig
    units: Sequence[Unit]
    windows: int
    measured_on: int
    context: int
    anchors: bool
    gptq: bool
    error_bytes: int = 2

    @property
    def weights(self) -> int:
        """Weights of all matrices that are rounded."""
        return sum(tensor.info.parameters for unit in self.units for tensor in unit.choices[0].tensors)

    @property
    def errors(self) -> int:
        """Numbers of rounding errors of all choices."""
        return sum(tensor.info.parameters for unit in self.units for each in unit.choices for tensor in each.tensors)

    def seconds(self, threads: int) -> float:
        """Expected time, without hashing and reading the model, at the rate of products that this machine has now."""
        tokens = self.windows * self.context
        work = float(_PASSES * self.weights * tokens + self.errors * self.windows)
        if self.anchors:
            work += work / 2 + 3 * self.weights * self.measured_on * self.context
        if self.gptq:
            inputs = list(_inputs(self.config))
            work += sum(_FACTOR_WORK * cols**3 for cols in inputs)
            shapes = [linear_shapes(self.config, layer).values() for layer in range(self.config.layers)]
            work += _GPTQ_WORK * sum(min(_GPTQ_ROWS, rows) * cols**2 for each in shapes for rows, cols in each)
        return work / products_per_second() + _ROUND_SECONDS * self.errors / threads

    def memory(self, limit: int) -> int:
        """Bytes at most, beside torch. limit: of rounding errors"""
        config, tokens = self.config, max(BATCH_TOKENS, self.context)
        batch = max(self.context, min(tokens, LOGITS // config.vocab))
        activations = min(ACTIVATIONS * 4 * tokens * config.hidden * config.layers, KEPT)
        widest = max(unit.choices[0].tensors[0].info.parameters for unit in self.units)
        found = 4 * self.weights + min(limit, self.error_bytes * self.errors) + activations
        found += _LOGITS_ALIVE * 4 * batch * config.vocab
        found += _GRADIENT * min(HELD, widest * max(1, tokens // self.context))
        found += 2 * 4 * (self.windows + self.measured_on) * self.context * config.hidden
        found += _SHAPES if config.experts is not None else 0
        return found + (gram_bytes(config) if self.gptq else 0)


def check_search(search: Search, resources: Resources, *, options: bool = True) -> str:
    """What the search is expected to take, in words.

    options: whether the command has --memory and --force
    Raises ResourceError if it takes more memory than is free, with options that would fit.
    """
    threads, now = resources.threads or cores(), memory_now()

    def need(limit: int) -> Need:
        return Need(now.resident + torch_memory() + search.memory(limit), 0, threads, now)

    wanted = need(errors_limit(resources.memory))
    found = wanted.missing()
    if found is None:
        return f"{human_seconds(search.seconds(threads))}, {human_bytes(wanted.peak)}"
    offer = _offer(need(0), found[0]) if options else "Close other programs, raise the limit, or take a larger machine."
    raise ResourceError(f"choosing types: {wanted.said(found)} {offer}")


def _offer(least: Need, room: Room) -> str:
    """What would fit. least: without rounding errors that are held"""
    if least.missing() is None:
        left = min(each.nbytes - least.more(each) for each in rooms())
        megabytes = max(left * 8 // 10 // 1_000_000, 1)
        return f"--memory={megabytes}MB would fit (rounding errors of fewer rows). --force starts it all the same."
    return (
        "The model is held in float32 for it: close other programs, raise the limit, or take a larger machine. "
        "--force starts it all the same."
    )
