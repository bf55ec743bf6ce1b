"""Learned rounding: tunes the offsets and scales of a whole block against its full-precision output.

As in SignRound / AutoRound (Cheng et al. 2023), each weight has an offset that is added before rounding. Offsets and
scales follow the gradient of the block's output error with a straight-through estimator and a step size that falls to
zero. Small trials led to two differences: Adam (Kingma and Ba 2014) instead of the gradient's sign, and an error
relative to each token's size, because the next norm removes that size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bitsmith.calibration.beside import place_windows
from bitsmith.calibration.gradients import Gradients, captures
from bitsmith.calibration.pieces import Pieces
from bitsmith.calibration.trainable import ScaledMatrix, Start, TrainableMatrix
from bitsmith.errors import TensorError, UsageError
from bitsmith.models.arch.block import linear_shapes
from bitsmith.quant.formats.base import VectorFormat
from bitsmith.quant.rounders.effort import Effort
from bitsmith.quant.tensor import QuantTensor
from bitsmith.quant.vector_grid import VECTOR
from bitsmith.runtime.decoder import Decoder, Pass
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.weights import Block, Linear
from bitsmith.system.progress import Progress, Report, silent

_HELD_OUT = 16  # one window in so many is held out to judge the results
_JUDGED = 4  # how often results are judged
_MOMENTS = (0.9, 0.99)  # Adam's beta1 and beta2


Matrix = TrainableMatrix | ScaledMatrix


@dataclass(frozen=True)
class Tuned:
    """Codes and stored parameters by linear name, numpy arrays, and their loss.

    loss_before, loss_after: loss of the start and of the result: squared error of the block's output as a share of
        the output's own square, mean over the tokens of held-out windows
    step: the step that gave the result; 0 if no step improved on the start
    notes: for the user
    """

    tensors: Mapping[str, QuantTensor]
    loss_before: float
    loss_after: float
    step: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Descent:
    """Matrices that learn, their block, and how.

    rates: the first step size of each of the optimizer's groups
    """

    matrices: Mapping[str, Matrix]
    block: Block
    optimizer: torch.optim.Adam
    rates: list[float]
    gradients: Gradients

    def step(self, batch: np.ndarray, share: float) -> None:
        """One step on some windows, with a share of the first step sizes."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.gradients(batch)
        self.optimizer.step()


class Windows(Protocol):
    """Hidden states of windows, float32 [windows, n, hidden], read a few windows at a time: an array or a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, windows: np.ndarray, /) -> Any:
        """Windows by number, int64 [count]: a numpy array or a torch tensor."""
        ...


@dataclass(frozen=True)
class BlockTuner:
    """Tunes the linears of one block.

    decoder: its configuration and operations run the block; its weights are not used
    layer: the block's number
    block: gives the norms, with rescalings folded in, and the linears that are not tuned
    seed: seed for the order of windows
    pieces: how the windows of a step are computed: in smaller pieces where memory is short
    """

    decoder: Decoder
    layer: int
    block: Block
    effort: Effort
    seed: int = 0
    pieces: Pieces = field(default_factory=Pieces)

    def tune(self, starts: Mapping[str, Start], inputs: Windows, targets: Windows, report: Report = silent) -> Tuned:
        """Tune the linears named in `starts` ("attn_q" ...); the block's other linears stay unchanged.

        inputs: float32 [windows, n, hidden], hidden states before the block, from the quantized blocks before it
        targets: the same shape, the output that the block should give
        report: called after each step
        If codes and parameters together gain nothing in the first quarter of the steps, parameters alone learn in the
        rest, from the start.
        Memory: four times the block (weights, offsets, Adam's two moments), its gradients, and one batch's
        activations. A single window serves for training and for judging. The same seed gives the same codes.
        Raises UsageError for an unknown linear or wrong shapes, TensorError if the loss is not finite.
        """
        self._check(starts, inputs, targets)
        trained, judged = split_windows(inputs.shape[0])
        own = self._descent(
            {name: _trainable(start, str(self.block.device)) for name, start in starts.items()}, inputs, targets
        )
        before = least = self._judge(own.block, inputs, targets, judged)
        if not np.isfinite(before):
            raise TensorError(
                f"block {self.layer}: the error of its output is not finite; the hidden states or the weights hold NaN "
                "or infinite values. Check the model with `bitsmith inspect --verify`."
            )
        best, found = _frozen(own.matrices), 0
        steps, notes = self.effort.steps, list[str]()
        for step, batch in enumerate(batches_of(trained, steps, self.effort.batch, self.seed), 1):
            own.step(batch, 1.0 - (step - 1) / steps)
            if step == steps or step % max(1, steps // _JUDGED) == 0:
                now = self._judge(own.block, inputs, targets, judged)
                if now < least:
                    best, least, found = _frozen(own.matrices), now, step
                elif not found and step < steps and (fixed := self._fixed(own.matrices, starts)):
                    notes += own.gradients.notes
                    own = self._descent(fixed, inputs, targets)
            report(Progress("learn", step, steps, "steps", f"blk.{self.layer}"))
        return Tuned(best, before, least, found, tuple(dict.fromkeys([*notes, *own.gradients.notes])))

    def _fixed(self, matrices: Mapping[str, Matrix], starts: Mapping[str, Start]) -> dict[str, Matrix] | None:
        """The start again, whose parameters alone learn; None if there are none, or if the codes stayed anyway.

        Where every single change of a code loses, as after GPTQ and coordinate descent on few tokens of a real model,
        many changes in a step lose much, and parameters still gain.
        """
        if all(isinstance(matrix, ScaledMatrix) for matrix in matrices.values()):
            return None
        fixed: dict[str, Matrix] = {
            name: ScaledMatrix(start.tensor, str(self.block.device)) for name, start in starts.items()
        }
        return fixed if any(matrix.changes for matrix in fixed.values()) else None

    def _descent(self, matrices: Mapping[str, Matrix], inputs: Windows, targets: Windows) -> _Descent:
        block = self._with(matrices)
        optimizer, rates = self._optimizer(matrices)
        return _Descent(matrices, block, optimizer, rates, self._gradients(block, matrices, inputs, targets))

    def _with(self, matrices: Mapping[str, Matrix]) -> Block:
        """The block with trainable matrices and its own biases."""
        return self.block.with_linears(
            {name: Linear(TRAINABLE, matrix, self.block.linears[name].bias) for name, matrix in matrices.items()}
        )

    def _optimizer(self, matrices: Mapping[str, Matrix]) -> tuple[torch.optim.Adam, list[float]]:
        """Adam for offsets and parameter changes, and the first step size of each of its groups."""
        groups, rates = [], []
        for matrix in matrices.values():
            share = 2.0 ** (2 - matrix.format.bits)
            if isinstance(matrix, TrainableMatrix):
                groups.append({"params": [matrix.offsets]})
                rates.append(self.effort.rounding * share)
            if matrix.changes:
                groups.append({"params": list(matrix.changes.values())})
                rates.append(self.effort.scaling * share)
        return torch.optim.Adam(groups, betas=_MOMENTS, fused=True), rates

    def _gradients(self, block: Block, matrices: Mapping[str, Matrix], inputs: Windows, targets: Windows) -> Gradients:
        """The gradients of a step. Where no value depends on which windows a batch has, a GPU may capture them."""
        config, device = self.decoder.config, self.block.device
        still = config.experts is None and not config.layer_width and not config.kept_layers
        shared = place_windows(self.decoder, self.layer, inputs, np.zeros(1, np.int64)) if still else None

        def loss(x: Tensor, wanted: Tensor, windows: np.ndarray) -> Tensor:
            with half_products(str(device)):
                return self._loss_of(block, x, wanted, shared or self._placed(inputs, windows))

        params = [each for matrix in matrices.values() for each in matrix.changes.values()]
        params += [matrix.offsets for matrix in matrices.values() if isinstance(matrix, TrainableMatrix)]
        capture = captures(torch.device(device)) if still else None
        return Gradients(
            lambda windows: self._read(inputs, targets, windows), loss, tuple(params), capture, self.pieces
        )

    def _read(self, inputs: Windows, targets: Windows, windows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some windows on the device."""
        device = self.block.device
        return torch.as_tensor(inputs[windows], device=device), torch.as_tensor(targets[windows], device=device)

    def _placed(self, inputs: Windows, windows: np.ndarray) -> Pass:
        return place_windows(self.decoder, self.layer, inputs, windows)

    def _loss(self, block: Block, inputs: Windows, targets: Windows, windows: np.ndarray) -> Tensor:
        x, wanted = self._read(inputs, targets, windows)
        return self._loss_of(block, x, wanted, self._placed(inputs, windows))

    def _loss_of(self, block: Block, x: Tensor, wanted: Tensor, shared: Pass) -> Tensor:
        out = self.decoder.run_block(self.layer, block, x, shared).float()
        size = wanted.square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
        loss: Tensor = ((out - wanted).square().sum(-1) / size).mean()
        return loss

    def _judge(self, block: Block, inputs: Windows, targets: Windows, windows: np.ndarray) -> float:
        size = min(self.effort.batch, len(windows))
        return self.pieces.again(lambda: self._judged(block, inputs, targets, windows, size), size)

    def _judged(self, block: Block, inputs: Windows, targets: Windows, windows: np.ndarray, size: int) -> float:
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(windows), size):
                for at in self.pieces.of(slice(start, min(start + size, len(windows)))):
                    total += float(self._loss(block, inputs, targets, windows[at])) * len(windows[at])
        return total / len(windows)

    def _check(self, starts: Mapping[str, Start], inputs: Windows, targets: Windows) -> None:
        hidden = self.decoder.config.hidden
        if inputs.shape != targets.shape or len(inputs.shape) != 3 or inputs.shape[2] != hidden or 0 in inputs.shape:
            raise UsageError(
                f"block {self.layer}: inputs and targets must both be [windows, n, {hidden}], found "
                f"{list(inputs.shape)} and {list(targets.shape)}."
            )
        shapes = linear_shapes(self.decoder.config, self.layer)
        for name, start in starts.items():
            if name not in shapes:
                raise UsageError(f"block {self.layer}: {name} is not a linear of a block; known: {', '.join(shapes)}.")
            wanted = shapes[name]
            vector = VECTOR if isinstance(start.tensor.format, VectorFormat) else 1
            codes = wanted[0], wanted[1] // vector
            if start.weight.shape != wanted or start.tensor.codes.shape != codes:
                raise UsageError(
                    f"block {self.layer}: {name} must be {list(wanted)}, found weights {list(start.weight.shape)} and "
                    f"codes {list(start.tensor.codes.shape)}."
                )


def half_products(device: str) -> torch.autocast:
    """Within it products are computed in bfloat16, where the device has these; inputs and weights are then rounded."""
    name = torch.device(device).type
    return torch.autocast(name, torch.bfloat16, enabled=_has_half_products(name))


def _has_half_products(device: str) -> bool:
    """Whether a device multiplies in bfloat16 faster than in float32."""
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


class TrainableKernel:
    """A kernel for trainable matrices. It decodes them for each product."""

    def supports(self, layout: str, device: str) -> bool:
        """False: trainable matrices are not prepared from files."""
        return False

    def prepare(self, weight: Weight) -> Any:
        """See `supports`."""
        raise UsageError(f"{weight.info.name}: trainable matrices are not prepared from files.")

    def linear(self, x: Tensor, prepared: TrainableMatrix | ScaledMatrix) -> Tensor:
        """float32 [..., cols] -> float32 [..., rows]."""
        return functional.linear(x, prepared.values())

    def gather(self, prepared: TrainableMatrix | ScaledMatrix, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., cols]."""
        return prepared.values()[ids]

    def nbytes(self, prepared: TrainableMatrix | ScaledMatrix) -> int:
        """Bytes of the decoded matrix."""
        return prepared.values().nbytes


TRAINABLE = TrainableKernel()


def _trainable(start: Start, device: str) -> Matrix:
    """A matrix that learns codes and parameters; of vectors the parameters alone."""
    if isinstance(start.tensor.format, VectorFormat):
        return ScaledMatrix(start.tensor, device)
    return TrainableMatrix(start, device)


def _frozen(matrices: Mapping[str, Matrix]) -> dict[str, QuantTensor]:
    return {name: matrix.frozen() for name, matrix in matrices.items()}


def split_windows(windows: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the windows for training, and of the windows for judging."""
    every = np.arange(windows)
    judged = every[::_HELD_OUT]
    return (np.setdiff1d(every, judged) if windows > 1 else every), judged


def batches_of(trained: np.ndarray, steps: int, batch: int, seed: int) -> Iterator[np.ndarray]:
    """The windows of each step. Every window is used once before any is used again."""
    generator = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        while len(order) < batch:
            order = np.concatenate([order, generator.permutation(trained)])
        yield np.sort(order[:batch])
        order = order[batch:]
