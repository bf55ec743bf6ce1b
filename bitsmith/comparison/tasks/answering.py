"""A model's answers: log-likelihoods of continuations, computed in batches, and greedy text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitsmith.comparison.generations import same_until
from bitsmith.comparison.tasks.items import Choice, Task, Written
from bitsmith.comparison.tasks.reading import Row, end_logits
from bitsmith.errors import TensorError, UsageError
from bitsmith.evaluation.perplexity import token_losses

if TYPE_CHECKING:
    from bitsmith.models.tokenizer import Tokenizer
    from bitsmith.runtime.language_model import LanguageModel

_MOST_WRITTEN = 64  # tokens of a written answer
_SAMPLE = 20  # questions whose tokens are counted beforehand


@dataclass(frozen=True)
class Likelihood:
    """A continuation.

    total: sum of the log-likelihoods of its tokens, nats
    greedy: whether each of them is the most probable one
    """

    total: float
    greedy: bool


@dataclass(frozen=True)
class Pair:
    """Token ids of a context, at least one, and of its continuation, at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: all but the last token, which is only predicted."""
        return (*self.context, *self.continuation)[:-1]


def encode_pair(model: LanguageModel, context: str, continuation: str) -> Pair:
    """Token ids as lm-eval has them: the text is encoded whole, and cut where the context alone ends.

    Spaces at the end of the context belong to the continuation. Raises UsageError if either is empty.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    encode = model.tokenizer.encode
    whole, alone = encode(kept + continuation, add_special=True), encode(kept, add_special=True)
    if not alone and model.tokenizer.bos is not None:
        start = [model.tokenizer.bos]
        whole, alone = [*start, *whole], start
    cut = len(alone)
    if cut == 0 or len(whole) <= cut:
        raise UsageError(f"a question and each of its choices must have a token: {kept!r:.60}, {continuation!r:.60}.")
    return Pair(tuple(whole[:cut]), tuple(whole[cut:]))


def likelihoods(
    model: LanguageModel, pairs: Sequence[Pair], *, on_done: Callable[[int, int], None] | None = None
) -> list[Likelihood]:
    """Log-likelihoods, in the order of the pairs.

    Pairs that read the same tokens, such as the letters of one question, share a row. A context that is longer than the
    model's loses its beginning, as in lm-eval.
    on_done: called with the number of rows done and the total
    Raises UsageError for a continuation that is longer than the model's context, TensorError for logits that are not
    finite.
    """
    most = model.config.context
    found: dict[tuple[int, ...], list[int]] = {}
    for number, pair in enumerate(pairs):
        found.setdefault(pair.inputs[-most:], []).append(number)
    longest = max((len(pair.continuation) for pair in pairs), default=0)
    if longest > most:
        raise UsageError(f"{model.name}: an answer has {longest:,} tokens, but the model's context is {most:,}.")
    readers = list(found.values())
    rows = [Row(inputs, max(len(pairs[number].continuation) for number in found[inputs])) for inputs in found]
    values: list[Likelihood | None] = [None] * len(pairs)
    done = 0
    for numbers, logits in end_logits(model, rows):
        for number, each in zip(numbers, logits, strict=True):
            for place in readers[number]:
                values[place] = _likelihood(model, each, pairs[place].continuation)
        done += len(numbers)
        if on_done is not None:
            on_done(done, len(rows))
    return [each for each in values if each is not None]


def _likelihood(model: LanguageModel, logits: np.ndarray, continuation: Sequence[int]) -> Likelihood:
    """logits: float32 [at least as many as the continuation has tokens, vocab], the last ones of its row"""
    wanted = np.array(continuation)
    part = logits[-len(wanted) :]
    if not np.isfinite(part).all():
        raise TensorError(f"{model.name}: the model's logits must be finite; its weights are damaged.")
    return Likelihood(-float(token_losses(part, wanted).sum()), bool((part.argmax(axis=1) == wanted).all()))


def right_answers(model: LanguageModel, task: Task, on_done: Callable[[int, int], None] | None = None) -> np.ndarray:
    """Whether each question is answered rightly: bool [items]."""
    right = np.zeros(len(task.items), bool)
    choices = [(place, item) for place, item in enumerate(task.items) if isinstance(item, Choice)]
    pairs = [encode_pair(model, item.prompt, each) for _, item in choices for each in item.continuations]
    values = iter(likelihoods(model, pairs, on_done=on_done))
    for place, item in choices:
        totals = [next(values).total for _ in item.continuations]
        right[place] = int(np.argmax(totals)) == item.answer
    for place, each in enumerate(task.items):
        if isinstance(each, Written):
            right[place] = written_answer(model, each.prompt) == each.answer.strip()
    return right


def tokens_of(tokenizer: Tokenizer, task: Task) -> int:
    """About how many tokens a model reads for the questions with choices; what neighbours share counts once."""
    choices = [item for item in task.items if isinstance(item, Choice)]
    step = max(1, len(choices) // _SAMPLE)
    sample = range(0, len(choices), step)
    total = 0.0
    for place in sample:
        prompt, answers = choices[place].prompt, choices[place].continuations
        before = same_until(choices[place - 1].prompt, prompt) if place else 0
        own = len(tokenizer.encode(prompt, add_special=False)) * (1.0 - before / max(len(prompt), 1))
        letters = all(len(each) == 2 for each in answers)
        total += own + (0 if letters else sum(len(tokenizer.encode(each, add_special=False)) for each in answers))
    return round(total * len(choices) / len(sample)) if choices else 0


def written_steps(task: Task) -> int:
    """The most steps of generation that the questions without choices take."""
    return _MOST_WRITTEN * sum(isinstance(item, Written) for item in task.items)


def written_answer(model: LanguageModel, prompt: str) -> str:
    """The first line of the model's greedy continuation that holds anything."""
    text = model.generate(prompt, max_tokens=_MOST_WRITTEN, temperature=0.0)
    return text.strip().split("\n")[0].strip()
