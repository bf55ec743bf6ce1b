"""Training of a whole quantized model, end to end, after its blocks were rounded one by one.

Fake quantization is the formats' own grids: the forward pass computes with the decoded values of stored parameters, so
what is trained is what is written. Gradients pass rounding straight through (Bengio et al. 2013); scales get those of
learned step sizes (LSQ, Esser et al. 2020). The loss is the divergence from the original (`distilled`). Two depths:
"scales" keeps the codes and trains scales, minima and norms (EfficientQAT, Chen et al. 2024, section 3.3); "all" also
trains the weights behind the codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitsmith.calibration.adam import OPTIMIZERS, Adam
from bitsmith.calibration.distilled import LastStates
from bitsmith.calibration.folding import with_tensors
from bitsmith.calibration.footprint import LOGITS
from bitsmith.calibration.kept_blocks import KeptBlocks
from bitsmith.calibration.kept_training import TrainedSoFar, keep_training, read_training
from bitsmith.calibration.learned import TRAINABLE, batches_of, half_products, split_windows
from bitsmith.calibration.pieces import Pieces
from bitsmith.calibration.trainable import ScaledMatrix, Start, TrainableMatrix, straight
from bitsmith.errors import TensorError
from bitsmith.quant.formats.base import Settled
from bitsmith.quant.lattice import kept
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.weights import Block, Linear, WeightLoader
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work.folder import WorkFolder

DEPTHS = ("scales", "all")
HEAD = "output"
_MOMENTS = (0.9, 0.99)  # Adam's beta1 and beta2
_JUDGED = 8  # how often results are judged
_MOST_JUDGED = 64  # windows for it
MOST_TOKENS = 5 << 17  # tokens of a text that scales are trained on; weights learn a text by heart that they see twice
_MOST_SCALING = 0.012  # largest step size of scales; larger ones were not measured
_WARMUP = 10  # steps in which step sizes grow
Matrix = ScaledMatrix | TrainableMatrix


@dataclass(frozen=True)
class EndToEnd:
    """How a model is trained.

    depth: of `DEPTHS`
    steps, batch: steps, and windows of each
    tokens: tokens of the text to train on, at most; 0: those of the calibration
    optimizer: of `OPTIMIZERS`
    teacher: name of the model whose predictions are learned; "": the original
    start: name of the file that holds the codes which are trained; "": they are made
    matching: weight of the distance to the original's hidden states behind the last block, beside the divergence; it is
        left out where another model teaches
    rounding, scaling, norms: first step sizes: of offsets at two bits, in codes; of scales at two bits, and of norms,
        as a share of their values. Those of matrices halve with each further bit; that of scales is 0.012 at most.
        All fall to zero as a cosine does.
    """

    depth: str = "scales"
    steps: int = 200
    batch: int = 8
    tokens: int = 0
    optimizer: str = OPTIMIZERS[0]
    teacher: str = ""
    start: str = ""
    matching: float = 0.1
    rounding: float = 0.001
    scaling: float = 0.004
    norms: float = 0.002

    def to_dict(self) -> dict[str, Any]:
        """For the recipe."""
        found: dict[str, Any] = {"train": self.depth, "steps": self.steps, "batch": self.batch}
        further = {"training_tokens": self.tokens, "teacher": self.teacher, "start": self.start}
        further |= {"optimizer": self.optimizer} if self.optimizer != OPTIMIZERS[0] else {}
        found |= {name: value for name, value in further.items() if value}
        return found | {name: getattr(self, name) for name in ("matching", "rounding", "scaling", "norms")}


def usual(depth: str) -> EndToEnd:
    """The settings of a depth that measured best, see docs/quality.md."""
    if depth == "scales":
        return EndToEnd(depth, steps=300, tokens=MOST_TOKENS, scaling=0.02, norms=0.004)
    return EndToEnd(depth, steps=600, tokens=2 * MOST_TOKENS, rounding=0.01, scaling=0.002)


@dataclass(frozen=True)
class Trained:
    """The result.

    rows: rows to store, under GGUF names: matrices with their codes, and norms
    before, after: divergence from the original on windows that were not trained on, nats a token
    step: the step that gave the result; 0 if none improved on the start
    broken: the step at which the loss was not finite, so that training ended; 0: none
    """

    rows: tuple[RoundedRows, ...]
    before: float
    after: float
    step: int
    broken: int = 0


@dataclass
class _Norm:
    """A norm that learns by relative changes, rounded to what the file stores. stored: its 16-bit type, or None"""

    origin: Tensor
    stored: torch.dtype | None
    offset: float
    change: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.change = torch.zeros_like(self.origin).requires_grad_(True)

    def values(self) -> Tensor:
        """float32 [n]."""
        wanted = self.origin * (1.0 + self.change)
        if self.stored is None:
            return wanted
        return straight(wanted, (wanted.detach() - self.offset).to(self.stored).float() + self.offset)


class Student:
    """The quantized model with everything in it that is trained.

    rows: what the blocks' rounding gave for the whole model
    room: bytes for what blocks keep for the backward pass, see `KeptBlocks`
    """

    def __init__(
        self,
        loader: WeightLoader,
        decoder: Decoder,
        rows: Sequence[RoundedRows],
        how: EndToEnd,
        room: int | None = None,
    ) -> None:
        """Reads the other tensors of the model."""
        self.decoder, self.how = decoder, how
        self._kept = KeptBlocks(decoder.config.layers, room)
        self._rows = [each for each in rows if each.tensor is not None]
        self.matrices: list[Matrix] = [self._matrix(each, loader.device) for each in self._rows]
        self.norms: dict[str, _Norm] = {}
        self._plain = {each.name: each.weight for each in rows if each.tensor is None}
        self._blocks = [self._block(loader, layer) for layer in range(decoder.config.layers)]

    def _matrix(self, rows: RoundedRows, device: str) -> Matrix:
        assert rows.tensor is not None
        if kept(rows.tensor.values(), rows.weight):  # on the grid already: nothing to gain
            return ScaledMatrix(rows.tensor, device, fixed=True)
        if self.how.depth == "scales":
            return ScaledMatrix(rows.tensor, device)
        return TrainableMatrix(Start(rows.weight, rows.tensor), device)

    def _block(self, loader: WeightLoader, layer: int) -> Block:
        prefix = f"blk.{layer}."
        block = loader.block(layer)
        changed = {
            name.removeprefix(prefix): values.reshape(-1) if len(values) == 1 else values
            for name, values in self._plain.items()
            if name.startswith(prefix)
        }
        if changed:
            block = with_tensors(block, changed)
        found = {}
        for rows, matrix in zip(self._rows, self.matrices, strict=True):
            if rows.name.startswith(prefix):
                name = rows.name.removeprefix(prefix).removesuffix(".weight")
                found[name] = replace(block.linears[name], kernel=TRAINABLE, prepared=matrix)
        return block.with_linears(found)

    def train_norms(self, stored: Mapping[str, np.dtype], *, as_folder: bool) -> None:
        """Let the norms of all blocks learn.

        stored: the 16-bit types in which norms are stored, by name within a block
        as_folder: whether the file stores norms as Hugging Face's do, without their 1 in some families
        """
        config = self.decoder.config
        for layer, block in enumerate(self._blocks):
            for name in config.family.norms.names:
                if name in block.norms:
                    dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(str(stored.get(name, "")))
                    offset = config.norm_offset(f"blk.{layer}.{name}.weight") if as_folder else 0.0
                    self.norms[f"blk.{layer}.{name}.weight"] = _Norm(block.norms[name], dtype, offset)

    def logits(self, ids: np.ndarray) -> Tensor:
        """Tokens int64 [windows, n] -> float32 [windows, n, vocab], in float32."""
        return self.head(self.hidden(ids, half=False), half=False)

    def hidden(self, ids: np.ndarray, *, half: bool) -> Tensor:
        """The hidden states after the last block: tokens int64 [windows, n] -> float32 [windows, n, hidden].

        half: products may be computed in bfloat16, where the device has them; their inputs and weights are then rounded
        """
        x = self.decoder.embedded(ids).detach()
        shared = self.decoder.place(ids.shape[1], ids)
        with half_products(str(x.device)) if half else nullcontext():
            for layer in range(len(self._blocks)):
                x = self._kept.run(layer, partial(self._run, layer, shared), x)
        found: Tensor = x.float()
        return found

    def _run(self, layer: int, shared: Any, x: Tensor) -> Tensor:
        block = self._blocks[layer]
        own = {name: self.norms.get(f"blk.{layer}.{name}.weight") for name in block.norms}
        block = block.with_norms({name: norm.values() for name, norm in own.items() if norm is not None})
        found: Tensor = self.decoder.run_block(layer, block, x, shared)
        return found

    def head(self, x: Tensor, *, half: bool) -> Tensor:
        """Logits of hidden states, float32 [windows, n, vocab]; the head's matrices are those that are trained."""
        heads = [matrix for rows, matrix in zip(self._rows, self.matrices, strict=True) if rows.name == "output.weight"]
        decoder = self.decoder
        with half_products(str(x.device)) if half else nullcontext():
            if heads:
                joined = torch.cat([matrix.values() for matrix in heads])
                output = Linear(DenseKernel(device=str(joined.device)), joined)
                decoder = Decoder(decoder.config, replace(decoder.weights, output=output), decoder.ops)
            found: Tensor = decoder.logits(x)
        return found.float()

    def groups(self) -> list[tuple[list[Tensor], float]]:
        """What is trained, with the first step size of each."""
        found: list[tuple[list[Tensor], float]] = []
        for matrix in self.matrices:
            share = 2.0 ** (2 - matrix.format.bits)
            if isinstance(matrix, TrainableMatrix):
                found.append(([matrix.offsets], self.how.rounding * share))
            if matrix.changes:
                found.append((list(matrix.changes.values()), min(self.how.scaling * share, _MOST_SCALING)))
        if self.norms:
            found.append(([norm.change for norm in self.norms.values()], self.how.norms))
        return found

    def state(self) -> list[Tensor]:
        """A copy of everything that is trained."""
        return [value.detach().clone() for values, _ in self.groups() for value in values]

    def copy_state(self, into: Sequence[Tensor]) -> None:
        """Copy everything that is trained into a state, in place: a second copy would take memory."""
        for value, copy in zip((v for values, _ in self.groups() for v in values), into, strict=True):
            copy.copy_(value.detach())

    def restore(self, state: Sequence[Tensor]) -> None:
        """Go back to a state."""
        with torch.no_grad():
            for value, before in zip((v for values, _ in self.groups() for v in values), state, strict=True):
                value.copy_(before)

    def rows(self) -> Iterator[RoundedRows]:
        """The rows to store. Raises TensorError where a file would not hold just what was simulated."""
        for rows, matrix in zip(self._rows, self.matrices, strict=True):
            tensor = matrix.frozen()
            _check_same(rows.name, matrix, tensor)
            yield replace(rows, tensor=tensor)
        for name, values in self._plain.items():
            if name not in self.norms:
                yield RoundedRows(name, 0, values, None)
        for name, norm in self.norms.items():
            with torch.no_grad():
                yield RoundedRows(name, 0, norm.values().cpu().numpy().reshape(1, -1), None)


def _check_same(name: str, matrix: Matrix, tensor: QuantTensor) -> None:
    if isinstance(tensor.format, Settled):  # its scales are stored together, and change a little in that
        return
    with torch.no_grad():
        if not np.array_equal(matrix.values().cpu().numpy(), np.asarray(tensor.values())):
            raise TensorError(f"{tensor.format.name} would not store just the trained values", tensor=name)


def train(
    student: Student,
    teacher: LastStates,
    tokens: np.ndarray,
    seed: int,
    report: Report = silent,
    *,
    work: WorkFolder | None = None,
    pieces: Pieces | None = None,
) -> Trained:
    """Train a student on windows of tokens, int64 [windows, n], and take the best state on windows held out.

    work: where the state is kept behind steps; what an earlier start has kept there is continued. None: nowhere
    pieces: how the windows of a step are computed: in smaller pieces where memory is short
    The same seed gives the same result. A loss that is not finite ends the training; the best state before stays.
    Raises TensorError if the start's loss is not finite.
    """
    how, pieces = student.how, pieces or Pieces()
    judged = split_windows(len(tokens))[1]
    judged = judged[:: -(-len(judged) // _MOST_JUDGED)]
    trained = np.setdiff1d(np.arange(len(tokens)), judged) if len(tokens) > 1 else judged
    groups = student.groups()
    optimizer = Adam([values for values, _ in groups], _MOMENTS, small=how.optimizer == "adam-8bit")
    so_far = None if work is None else read_training(work, student, optimizer)
    if so_far is None:
        before = _judge(student, teacher, tokens, judged, pieces)
        if not np.isfinite(before):
            raise TensorError(
                "the quantized model's predictions are not finite; check the model with `bitsmith inspect`"
            )
        so_far = TrainedSoFar(0, before, before, 0, student.state())
    before, least, found, best, broken = so_far.before, so_far.least, so_far.found, so_far.best, 0
    for step, batch in enumerate(batches_of(trained, how.steps, how.batch, seed), 1):
        if step <= so_far.step:
            continue

        def learn(batch: np.ndarray = batch) -> float:
            optimizer.zero_grad()
            parts = [batch[at] for at in pieces.of(slice(0, len(batch)))]
            return float(sum(_learn(student, teacher, tokens, part, len(batch)) for part in parts))

        said = pieces.again(learn, len(batch))
        if not np.isfinite(said):
            broken = step
            break
        share = min(1.0, step / _WARMUP) * (1.0 + math.cos(math.pi * (step - 1) / how.steps)) / 2
        optimizer.step([rate * share for _, rate in groups])
        if step == how.steps or step % max(1, how.steps // _JUDGED) == 0:
            now = _judge(student, teacher, tokens, judged, pieces)
            if now < least:
                student.copy_state(best)
                least, found = now, step
        report(Progress("train", step, how.steps, "steps", f"divergence {said:.4f}"))
        if work is not None and work.pace.due:
            keep_training(work, student, optimizer, TrainedSoFar(step, before, least, found, best))
    student.restore(best)
    return Trained(tuple(student.rows()), before, least, found, broken)


def _learn(student: Student, teacher: LastStates, tokens: np.ndarray, batch: np.ndarray, of: int) -> float:
    """Add the gradients of some windows of a step of so many, and return their share of the divergence.

    Logits are computed for few windows at a time. Where the loss is not finite, gradients may be missing.
    """
    total, how = 0.0, student.how
    with torch.enable_grad():
        hidden = student.hidden(tokens[batch], half=True)
        ends = hidden.detach().requires_grad_(True)
        for at in _slabs(student, tokens.shape[1], len(batch)):
            own = batch[at]
            logits = student.head(ends[at], half=True)
            loss = teacher.divergence(own, logits)
            total += float(loss.detach()) * len(own) / of
            if not np.isfinite(total):
                return total
            if how.matching and not how.teacher:
                loss = loss + how.matching * teacher.distance(own, ends[at])
            torch.autograd.backward(loss * (len(own) / of))
        torch.autograd.backward(hidden, ends.grad)
    return total


def _slabs(student: Student, context: int, windows: int) -> Iterator[slice]:
    """Windows whose logits are computed at once."""
    step = max(1, LOGITS // (context * student.decoder.config.vocab))
    for start in range(0, windows, step):
        yield slice(start, min(start + step, windows))


def _judge(student: Student, teacher: LastStates, tokens: np.ndarray, windows: np.ndarray, pieces: Pieces) -> float:
    size = min(student.how.batch, len(windows))

    def judged() -> float:
        total = 0.0
        for start in range(0, len(windows), size):
            for at in pieces.of(slice(start, min(start + size, len(windows)))):
                part = windows[at]
                hidden = student.hidden(tokens[part], half=False)
                for slab in _slabs(student, tokens.shape[1], len(part)):
                    logits = student.head(hidden[slab], half=False)
                    total += float(teacher.divergence(part[slab], logits)) * len(part[slab])
        return total / len(windows)

    with torch.no_grad():
        return pieces.again(judged, size)
