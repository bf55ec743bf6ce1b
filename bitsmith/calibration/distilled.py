"""What a model is distilled from: the original's logits, as the largest ones of each token and the rest's mass.

The student's loss is the divergence KL(original || student) over these K tokens and one event for all others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitsmith.calibration.hidden import HiddenStates
from bitsmith.system.memory import available_memory
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.work.state import State

TOP = 256  # tokens that are kept for each position
_SMALL = 1e-7  # least mass of the rest, so that its logarithm is finite


def kept_bytes(tokens: int, vocab: int) -> int:
    """Bytes of the kept predictions for so many tokens: an identifier and a float16 for each of the largest."""
    return tokens * min(TOP, vocab) * (_id_type(vocab).itemsize + 2)


def _id_type(vocab: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab <= 1 << 16 else np.int32)


@dataclass(frozen=True)
class TopLogits:
    """The original's predictions for all windows, in memory or in an unnamed temporary file.

    ids: uint16, or int32 for large vocabularies, [windows, context, K], the most probable tokens
    log_probs: float16, the same shape, their log-probabilities
    """

    ids: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def of(
        cls,
        hidden: HiddenStates,
        logits: Callable[[Tensor], Tensor],
        vocab: int,
        report: Report = silent,
        *,
        memory: int | None = None,
    ) -> TopLogits:
        """From the hidden states after the original's last block.

        logits: hidden states float32 [windows, context, hidden] -> float32 [windows, context, vocab]
        memory: bytes that the predictions may take in memory; more go to disk. None: half of what is available now
        """
        windows, context, _ = hidden.shape
        top = min(TOP, vocab)
        room = available_memory() if memory is None else 2 * memory
        on_disk = room is not None and kept_bytes(windows * context, vocab) > room // 2
        ids = _space((windows, context, top), _id_type(vocab), on_disk)
        found = _space((windows, context, top), np.dtype(np.float16), on_disk)
        with torch.no_grad():
            for at in hidden.batches():
                report(Progress("distill", at.start, windows, "windows"))
                values, tokens = logits(hidden.read(at)).log_softmax(-1).topk(top, dim=-1)
                ids[at], found[at] = tokens.cpu().numpy(), values.cpu().numpy()
        report(Progress("distill", windows, windows, "windows"))
        return cls(ids, found)

    def kept(self) -> dict[str, np.ndarray]:
        """Everything, for a state file."""
        return {"ids": self.ids, "log_probs": self.log_probs}

    @classmethod
    def taken(cls, state: State, *, memory: int | None = None) -> TopLogits:
        """What `kept` gave, in memory or in a temporary file. memory: see `of`"""
        found = []
        room = available_memory() if memory is None else 2 * memory
        shapes = {name: state.shape(name) for name in ("ids", "log_probs")}
        size = sum(int(np.prod(shape)) * state.dtype(name).itemsize for name, shape in shapes.items())
        for name, shape in shapes.items():
            values = _space((shape[0], shape[1], shape[2]), state.dtype(name), room is not None and size > room // 2)
            for window in range(shape[0]):
                values[window] = state.rows(name, window, window + 1)[0]
            found.append(values)
        return cls(*found)

    def divergence(self, windows: np.ndarray, logits: Tensor) -> Tensor:
        """Mean divergence of the student's predictions for some windows, by number, in nats a token.

        logits: float32 [windows, context, vocab]
        """
        known = torch.from_numpy(self.log_probs[windows].astype(np.float32)).to(logits.device)
        ids = torch.from_numpy(self.ids[windows].astype(np.int64)).to(logits.device)
        found: Tensor = _Divergence.apply(logits, ids, known)  # type: ignore[no-untyped-call]
        return found


class _Divergence(torch.autograd.Function):
    """KL(original || student) over the kept tokens and one event for all others, with its gradient in closed form.

    With probabilities p of the original and q of the student, and r and l what they give to all other tokens, the
    gradient by a logit is q - p for a kept token, and q (1 - r / l) for another one.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, known: Tensor) -> Tensor:
        logs = logits.log_softmax(-1)
        theirs = logs.gather(-1, ids)
        probs, own = known.exp(), theirs.exp()
        mass = probs.sum(-1, keepdim=True)
        rest = (1.0 - mass).clamp_(min=_SMALL)
        left = 1.0 - own.sum(-1, keepdim=True)
        moving = left > _SMALL  # below it the others' share counts as a constant
        left.clamp_(min=_SMALL)
        found = (probs * (known - theirs)).sum(-1, keepdim=True) + rest * (rest.log() - left.log())
        if ctx.needs_input_grad[0]:
            share = torch.where(moving, rest, 0.0)
            gradient = logs.exp_().mul_(mass + share - share / left)
            gradient.scatter_(-1, ids, own * (mass + share) - probs)
            ctx.save_for_backward(gradient.div_(found.numel()))
        return found.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * above, None, None


def _space(shape: tuple[int, ...], dtype: np.dtype, on_disk: bool) -> np.ndarray:
    """An empty array, in memory or in a temporary file that disappears with it."""
    if not on_disk:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="bitsmith-") as file:  # the mapping keeps it
        return np.memmap(file, dtype, "w+", shape=shape)
