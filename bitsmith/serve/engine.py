"""Continuous batching: all texts on their way share each step, so that a weight is read once for all of them.

Each step takes one token of every answer and some tokens of the prompts that wait, so that a long prompt does not hold
the answers up. All work of a model is done by one thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bitsmith.errors import BitsmithError, UsageError
from bitsmith.runtime.generate import check_lookup
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.serve.drawer import Drawer
from bitsmith.serve.grammar import Grammars
from bitsmith.serve.job import Job
from bitsmith.serve.pooling import PoolJob
from bitsmith.serve.sequence import Deliver, Sequence
from bitsmith.serve.slots import Slots
from bitsmith.serve.wish import PoolEvent, Pooling, Wish

_LOGITS = 64  # rows of logits at a time: the core computes so many as if each came alone
_log = logging.getLogger(__name__)


class BusyError(BitsmithError):
    """The queue is full. seconds: when to try again"""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {seconds} s.")
        self.seconds = seconds


@dataclass(frozen=True)
class Limits:
    """How much is done at the same time.

    parallel: texts computed together; queue: texts that may wait; chunk: prompt tokens of a step
    lookup: tokens that are guessed for each text and step, see `runtime.lookup`; 0: none
    """

    parallel: int = 4
    queue: int = 64
    chunk: int = 256
    lookup: int = 0


@dataclass
class Counts:
    """What the engine did since its start. Steps and seconds are those of the model alone."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    drawn_tokens: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    rows: int = 0
    busy_seconds: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=64))  # seconds from start to end of answers


class Engine:
    """Answers many wishes at once. Its thread starts with the first and ends with `close`.

    Every text may hold `context` tokens, prompt and answer together. Raises UsageError for `lookup` with a model that
    cannot go back.
    """

    def __init__(self, model: LanguageModel, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        check_lookup(model.decoder, limits.lookup)
        self.model = model
        self.limits = limits
        self.counts = Counts()
        self.context = model.config.context
        self._slots = Slots(model.decoder.new_cache(self.context, batch=limits.parallel))
        self._ends = model.tokenizer.end_ids
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._active: list[Job] = []
        self._started: dict[Job, float] = {}
        self._closing = False
        self._thread: threading.Thread | None = None
        self._grammars: Grammars | None = None

    @property
    def grammars(self) -> Grammars:
        """For answers of a given form. Raises UnsupportedError where llguidance is not installed."""
        if self._grammars is None:
            self._grammars = Grammars(self.model.tokenizer, self.model.config.vocab)
        return self._grammars

    @property
    def load(self) -> tuple[int, int]:
        """Numbers of texts that are computed, and that wait."""
        with self._changed:
            return len(self._active), len(self._waiting)

    def check(self, wish: Wish) -> None:
        """Raise UsageError for a wish that cannot be fulfilled, before any work."""
        if not wish.prompt:
            raise UsageError("the prompt has no tokens, so there is nothing to continue; give a text.")
        if len(wish.prompt) >= self.context:
            raise UsageError(
                f"the prompt has {len(wish.prompt):,} tokens, but prompt and answer together may have "
                f"{self.context:,}; shorten it."
            )
        if wish.max_tokens is not None and wish.max_tokens < 1:
            raise UsageError(f"max_tokens must be 1 or more, found {wish.max_tokens}.")
        outside = [token for token in wish.drawing.bias if not 0 <= token < self.model.config.vocab]
        if outside:
            raise UsageError(f"logit_bias: token {outside[0]} is not in 0..{self.model.config.vocab - 1}.")

    def submit(self, wish: Wish, deliver: Deliver) -> Sequence:
        """Put a wish into the queue. `deliver` is called from the engine's thread until a Done or Failed comes.

        Raises UsageError as `check` does, BusyError where the queue is full.
        """
        self.check(wish)
        sequence = Sequence(wish, deliver)
        self._enqueue(sequence)
        return sequence

    def embed(self, ids: Tokens[int], pooling: Pooling, deliver: Callable[[PoolEvent], None]) -> Job:
        """Put a text to embed into the queue. `deliver` is called once, from the engine's thread.

        Raises UsageError for a text that is empty, too long or has unknown tokens, BusyError where the queue is full.
        """
        if not 1 <= len(ids) <= self.context:
            raise UsageError(f"the text has {len(ids):,} tokens; expected 1 to {self.context:,}.")
        outside = next((token for token in ids if not 0 <= token < self.model.config.vocab), None)
        if outside is not None:
            raise UsageError(f"token {outside} is not in 0..{self.model.config.vocab - 1}.")
        job = PoolJob(ids, pooling, deliver)
        self._enqueue(job)
        return job

    def _enqueue(self, job: Job) -> None:
        with self._changed:
            if self._closing:
                raise UsageError("the server is going down.")
            if len(self._waiting) >= self.limits.queue:
                raise BusyError(len(self._waiting), self._patience())
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="bitsmith-engine", daemon=True)
                self._thread.start()
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants the answer any more. It ends with the present step."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread; what is on its way is cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _patience(self) -> int:
        """Seconds until a place in the queue is likely to be free."""
        recent = self.counts.recent
        mean = sum(recent) / len(recent) if recent else 1.0
        return max(1, round(mean / self.limits.parallel))

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._waiting or self._active):
                    self._changed.wait()
                self._drop_cancelled()
                if self._closing:
                    break
                admitted = self._admit()
            for job in admitted:
                self._make_ready(job)
            if self._active:
                self._guarded_step()

    def _drop_cancelled(self) -> None:
        for job in [*self._active, *self._waiting]:
            if job.cancelled or self._closing:
                self.counts.cancelled += 1
                job.finish("cancelled")
                self._forget(job)

    def _forget(self, job: Job) -> None:
        """Take a text out of the engine."""
        if job in self._waiting:
            self._waiting.remove(job)
        if job in self._active:
            self._active.remove(job)
            assert job.slot is not None
            self._slots.release(job.slot, worth=not isinstance(job, PoolJob))
            self.counts.recent.append(self._clock() - self._started.pop(job))

    def _admit(self) -> list[Job]:
        """Give free slots to those that wait longest."""
        admitted = []
        while self._waiting and self._slots.free:
            job = self._waiting.popleft()
            job.take_slot(*self._slots.take(job.tokens, keeps=job.keeps))
            self._active.append(job)
            self._started[job] = self._clock()
            self.counts.reused_tokens += job.reused
            admitted.append(job)
        return admitted

    def _make_ready(self, job: Job) -> None:
        """Let an answer begin, if its grammar lets it. A grammar may take long: no lock is held here."""
        if not isinstance(job, Sequence):
            return
        grammar = job.wish.drawing.grammar
        try:
            matcher = self.grammars.matcher(grammar) if grammar else None
        except BitsmithError as error:
            self._fail([(job, [])], str(error))
            return
        except Exception as error:  # as in a step
            _log.exception("a grammar failed")
            self._fail([(job, [])], f"internal error: {type(error).__name__}")
            return
        drawer = Drawer(job.wish, matcher, self._ends)
        job.start(drawer, self.model.tokenizer, lookup=self.limits.lookup)

    def _guarded_step(self) -> None:
        """A step. An error of the model ends the answers of this step, not the engine."""
        rows = self._rows()
        try:
            self._step(rows)
        except BitsmithError as error:
            self._fail(rows, str(error))
        except Exception as error:  # a fault of ours must end these answers, not all that follow
            _log.exception("a step failed")
            self._fail(rows, f"internal error: {type(error).__name__}")

    def _fail(self, rows: list[tuple[Job, list[int]]], words: str) -> None:
        with self._changed:
            for job, _ in rows:
                if job in self._active:
                    self.counts.failed += 1
                    self._forget(job)
                    assert job.slot is not None
                    self._slots.empty(job.slot)
                    job.fail(words)

    def _rows(self) -> list[tuple[Job, list[int]]]:
        """The texts of the next step, and tokens of each: every answer with its guesses, then prompts in order."""
        answers = [(each, each.waiting + each.guess(self.context)) for each in self._active if each.drawn]
        room, prompts = self.limits.chunk, []
        for job in self._active:
            if room > 0 and not job.drawn:
                prompts.append((job, job.waiting[:room]))
                room -= len(prompts[-1][1])
        return answers + prompts

    def _step(self, rows: list[tuple[Job, list[int]]]) -> None:
        counts = np.array([len(tokens) for _, tokens in rows])
        fed = np.zeros((len(rows), int(counts.max())), np.int64)
        for row, (_, tokens) in enumerate(rows):
            fed[row, : len(tokens)] = tokens
        answers, slots = sum(each.drawn > 0 for each, _ in rows), np.array([each.slot for each, _ in rows])
        decoder, started = self.model.decoder, self._clock()
        states = decoder.hidden(fed, self._slots.cache, slots=slots, counts=counts, single=answers)
        logits = self._logits(rows, states, counts)
        pooled = [
            decoder.numpy(decoder.normed(states[row, : counts[row]])) if isinstance(each, PoolJob) else None
            for row, (each, _) in enumerate(rows)
        ]
        self.counts.busy_seconds += self._clock() - started
        self.counts.steps += 1
        self.counts.rows += len(rows)
        self.counts.prompt_tokens += sum(len(tokens) for each, tokens in rows if not each.drawn)
        for (job, tokens), own, vectors in zip(rows, logits, pooled, strict=True):
            if isinstance(job, PoolJob) and vectors is not None:
                self._end(job, goes_on=job.pool(vectors))
            elif isinstance(job, Sequence) and len(own):
                self._end(job, goes_on=self._draw(job, own))
            else:
                job.fed += len(tokens)

    def _end(self, job: Job, *, goes_on: bool) -> None:
        """Forget a text that has ended."""
        if not goes_on:
            with self._changed:
                self.counts.finished += 1
                self._forget(job)

    def _logits(self, rows: list[tuple[Job, list[int]]], states: Any, counts: np.ndarray) -> list[np.ndarray]:
        """Logits of every token of answers, float32 [tokens, vocab], and of the last of prompts.

        states: the decoder's, [rows, n, hidden]; counts: tokens of each row
        Of prompts that are not at their end there are none, nor of texts that are only pooled.
        """
        wanted = [
            0 if isinstance(each, PoolJob) else len(tokens) if each.drawn else int(each.ends_with(tokens))
            for each, tokens in rows
        ]
        row = np.repeat(np.arange(len(rows)), wanted)
        if not len(row):
            return [np.zeros((0, 0), np.float32)] * len(rows)
        ends, decoder = np.cumsum(wanted), self.model.decoder
        place = np.arange(len(row)) - np.repeat(ends - counts, wanted)
        parts = [
            decoder.numpy(decoder.logits(states[row[i : i + _LOGITS], place[i : i + _LOGITS]]))
            for i in range(0, len(row), _LOGITS)
        ]
        return np.split(np.concatenate(parts) if len(parts) > 1 else parts[0], ends[:-1])

    def _draw(self, sequence: Sequence, logits: np.ndarray) -> bool:
        """Draw tokens of one sequence, as far as guesses come true. Whether it goes on.

        A failing grammar ends this answer alone.
        """
        assert sequence.slot is not None
        try:
            drawn, right, goes_on = sequence.take(logits, self._ends, self.context)
        except BitsmithError as error:
            self._fail([(sequence, [])], str(error))
            return True
        self.counts.drawn_tokens += drawn
        self.counts.guessed_tokens += len(logits) - 1
        self.counts.right_guesses += right
        if len(logits) > 1:
            self._slots.cache.truncate(sequence.slot, sequence.fed)
        return goes_on
