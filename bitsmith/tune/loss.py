"""The loss of next tokens without the logits of a whole batch.

Logits of 2,048 tokens over 150,000 words are 1.2 GB in float32, and an ordinary loss keeps three such arrays. Here the
logits of some tokens over some words are made, used and made again: once for the sums of the softmax, once for the
gradient of the head's input, which is all that is kept (as in Cut Cross-Entropy, Wijmans et al. 2024, section 4).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitsmith.planner.training import SLAB_LOGITS, SLAB_ROWS
from bitsmith.tune.batches import IGNORED

_LEAST_WORDS, _LEAST_ROWS = 256, 64
_PROBED = 4  # tokens


@dataclass(frozen=True)
class Head:
    """The end of a language model: logits = after(module(hidden)).

    module: the output head
    after: what the model does to its output, elementwise; None for nothing
    """

    module: nn.Module
    after: Callable[[Tensor], Tensor] | None

    def logits(self, hidden: Tensor, words: slice = slice(None)) -> Tensor:
        """Of some words: hidden [rows, width] -> [rows, words]. A part of the words is for a plain head alone."""
        if words == slice(None):
            out: Tensor = self.module(hidden)
        else:
            bias: Any = self.module.bias
            out = functional.linear(hidden, self.module.weight[words], None if bias is None else bias[words])  # type: ignore[index]
        return out if self.after is None else self.after(out)

    @property
    def is_plain(self) -> bool:
        """Whether it is a frozen matrix, whose columns can be taken one part after the other."""
        module = self.module
        frozen = not any(each.requires_grad for each in module.parameters())
        return type(module) is nn.Linear and frozen and not module._forward_hooks and not module._forward_pre_hooks


def find_head(model: Any) -> Head | None:
    """The head of a model of transformers, if logits are its output, capped or scaled as the configuration says.

    None where they are something else, or the loss has further terms (of routers). Runs the model on a few tokens.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = plain.get_output_embeddings()
    text = plain.config.get_text_config()
    takes = inspect.signature(plain.forward).parameters
    if module is None or "logits_to_keep" not in takes or getattr(text, "output_router_logits", False):
        return None
    head = Head(module, _after(text))
    ids = torch.arange(_PROBED, device=next(model.parameters()).device)[None]
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=ids).logits
    finally:
        hook.remove()
        model.train(was_training)
    with torch.no_grad():
        same = len(seen) == 1 and torch.allclose(head.logits(seen[0]), logits, rtol=1e-2, atol=1e-4)
    return head if same else None


def _after(config: Any) -> Callable[[Tensor], Tensor] | None:
    """What families do to the head's output, by their configuration."""
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite
    if cap is None and scale == divisor == 1.0:
        return None

    def after(logits: Tensor) -> Tensor:
        if scale != 1.0 or divisor != 1.0:
            logits = logits * scale / divisor
        return logits if cap is None else torch.tanh(logits / cap) * cap

    return after


def token_loss(model: Any, head: Head | None, inputs: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The summed loss of a batch in nats, float32 [], and the number of tokens that count.

    head: of `find_head`; None: logits are computed as a whole
    inputs: of the model, with "labels" int64 [rows, tokens], a token at its own place or IGNORED
    """
    given = dict(inputs)
    labels = given.pop("labels")[:, 1:]
    if head is None:
        logits: Tensor = model(**given).logits[:, :-1]
        wide = logits.reshape(-1, logits.shape[-1]).float()
        loss = functional.cross_entropy(wide, labels.reshape(-1), ignore_index=IGNORED, reduction="sum")
        return loss, int((labels != IGNORED).sum())
    hidden = _last_hidden(model, head, given)[:, :-1]
    counted = labels != IGNORED
    trained = [each for each in head.module.parameters() if each.requires_grad and torch.is_grad_enabled()]
    total: Tensor = _SlabLoss.apply(hidden[counted], labels[counted], head, *trained)  # type: ignore[no-untyped-call]
    return total, int(counted.sum())


def _last_hidden(model: Any, head: Head, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the model gives its head, [rows, tokens, hidden]. The head itself sees the last token alone."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(given[0])
        return (given[0][..., -1:, :].detach(), *given[1:])

    hook = head.module.register_forward_pre_hook(keep)
    try:
        model(**inputs)
    finally:
        hook.remove()
    (hidden,) = seen
    return hidden


class _SlabLoss(torch.autograd.Function):
    """Sum of -log softmax(logits)[label] over rows; gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head, *trained: Tensor) -> Tensor:
        """hidden [rows, width], labels int64 [rows] -> float32 []."""
        wanted = ctx.needs_input_grad[0] or bool(trained)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad = torch.zeros_like(hidden) if wanted else None
        grads = [torch.zeros_like(each) for each in trained] if wanted else []
        plain = head.is_plain
        for start in range(0, len(hidden), SLAB_ROWS if plain else _LEAST_ROWS):
            at = slice(start, start + (SLAB_ROWS if plain else _LEAST_ROWS))
            part, of_part = hidden[at], None if grad is None else grad[at]
            total += (_by_words if plain else _by_rows)(head, part, labels[at], of_part, trained, grads)
        if wanted:
            ctx.save_for_backward(grad, *grads)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *up: Tensor) -> tuple[Tensor | None, ...]:
        """Of hidden and of the head's trained parameters."""
        grad, *grads = ctx.saved_tensors
        return grad * up[0].to(grad.dtype), None, None, *(each * up[0].to(each.dtype) for each in grads)


def slabs_of_words(rows: int, vocab: int) -> Iterator[slice]:
    """Parts of a vocabulary whose logits for so many rows are computed at once."""
    step = max(_LEAST_WORDS, SLAB_LOGITS // max(rows, 1))
    return (slice(start, min(start + step, vocab)) for start in range(0, vocab, step))


def _by_words(
    head: Head, hidden: Tensor, labels: Tensor, grad: Tensor | None, trained: tuple[Tensor, ...], grads: list[Tensor]
) -> Tensor:
    """The summed loss of some rows under a frozen matrix; writes the gradient of `hidden` to `grad`."""
    matrix: Any = head.module.weight
    rows, vocab = len(hidden), len(matrix)
    top = hidden.new_full((rows, 1), -torch.inf, dtype=torch.float32)
    sums, chosen = torch.zeros_like(top), torch.zeros_like(top)
    for words in slabs_of_words(rows, vocab):
        logits = head.logits(hidden, words).to(torch.float32, copy=True)
        inside, at = _places(labels, words)
        chosen += torch.where(inside, logits.gather(1, at), 0.0)
        highest = torch.maximum(top, logits.amax(1, keepdim=True))
        sums.mul_(torch.exp(top - highest)).add_(logits.sub_(highest).exp_().sum(1, keepdim=True))
        top = highest
    whole = top + sums.log()
    if grad is not None:
        wide = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        for words in slabs_of_words(rows, vocab):
            wide += _slope(head, hidden, words, labels, whole) @ matrix[words]
        grad.copy_(wide)
    return (whole - chosen).sum()


def _slope(head: Head, hidden: Tensor, words: slice, labels: Tensor, whole: Tensor) -> Tensor:
    """The gradient of the loss by the head's output for some words, in its dtype. whole: log of the softmax's sum"""
    raw = Head(head.module, None).logits(hidden, words)
    logits, after = raw, head.after
    if after is not None:
        raw.requires_grad_(True)
        with torch.enable_grad():
            logits = after(raw)
    slope = logits.detach().to(torch.float32, copy=True).sub_(whole).exp_()
    inside, at = _places(labels, words)
    slope.scatter_add_(1, at, torch.where(inside, -1.0, 0.0))
    narrow = slope.to(raw.dtype)
    return narrow if after is None else torch.autograd.grad(logits, raw, narrow)[0]


def _places(labels: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Which labels are among some words, and where: bool and int64 [rows, 1]."""
    at = labels[:, None] - words.start
    inside = (at >= 0) & (at < words.stop - words.start)
    return inside, torch.where(inside, at, 0)


def _by_rows(
    head: Head, hidden: Tensor, labels: Tensor, grad: Tensor | None, trained: tuple[Tensor, ...], grads: list[Tensor]
) -> Tensor:
    """The same of a few rows under any head; adds the gradients of its trained parameters to `grads`."""
    wanted = grad is not None
    part = hidden.detach().requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        logits = head.logits(part)
    wide = logits.detach().to(torch.float32, copy=True)
    at = labels[:, None]
    wide -= wide.amax(1, keepdim=True)
    chosen = wide.gather(1, at)
    sums = wide.exp_().sum(1, keepdim=True)
    loss = (sums.log() - chosen).sum()
    if grad is not None:
        wide /= sums
        wide.scatter_add_(1, at, torch.full_like(chosen, -1.0))
        found = torch.autograd.grad(logits, (part, *trained), wide.to(logits.dtype))
        grad.copy_(found[0])
        for each, added in zip(grads, found[1:], strict=True):
            each += added
    return loss
