"""Speed: tokens a second of a loaded model, for a prompt and for generation, as llama-bench measures them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from bitsmith.errors import UsageError
from bitsmith.system.processor import processor_name
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.system.sizes import human_bytes
from bitsmith.system.tables import html_table

if TYPE_CHECKING:
    from bitsmith.system.core_choices import CoreChoices

MOST_PARALLEL = 256
DEFAULT_PROMPT, DEFAULT_GEN, DEFAULT_REPEAT = 512, 128, 5
REPORT_EVERY = 0.5  # seconds; drawing progress more often would slow the measurement


class Shape(Protocol):
    """What measuring needs of a model's configuration: number of positions and of tokens."""

    @property
    def context(self) -> int: ...
    @property
    def vocab(self) -> int: ...


class Network(Protocol):
    """A decoder that can be measured; see `bitsmith.runtime.decoder.Decoder`."""

    def new_cache(self, capacity: int, *, batch: int = 1) -> Any: ...
    def prefill(self, tokens: np.ndarray, cache: Any) -> Any: ...


class Runner(Protocol):
    """A loaded model."""

    @property
    def config(self) -> Shape: ...
    @property
    def decoder(self) -> Network: ...


@runtime_checkable
class Timed(Protocol):
    """A decoder that knows where its time goes."""

    def times(self) -> dict[str, float]:
        """Seconds so far, by what they were spent on."""
        ...


@dataclass(frozen=True)
class Rate:
    """Tokens a second, measured several times.

    tokens: number of tokens in one measurement
    seconds: time of each measurement
    parts: seconds of all measurements together, by what they were spent on; empty where the decoder does not know
    """

    tokens: int
    seconds: tuple[float, ...]
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        """Tokens a second of each measurement."""
        return [self.tokens / seconds for seconds in self.seconds]

    @property
    def mean(self) -> float:
        """Mean of the tokens a second of all measurements, as in llama-bench. It is not computed from the mean time."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation of one measurement, tokens a second; 0 with a single measurement."""
        return statistics.stdev(self.values) if len(self.seconds) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Numbers, ready for JSON."""
        values = self.values
        spread = {"mean": self.mean, "deviation": self.deviation, "min": min(values), "max": max(values)}
        shares = {part: seconds / sum(self.seconds) for part, seconds in self.parts.items()}
        return {
            "tokens": self.tokens,
            "tokens_per_second": spread,
            "seconds": list(self.seconds),
            "shares_of_time": shares,
        }


@dataclass(frozen=True, repr=False)
class Speed:
    """The result of `bitsmith bench`.

    threads: number of threads for arithmetic
    prompt, generation: None if not measured
    load_seconds: time to open the model and make it ready to run
    peak_memory: bytes of the whole process
    token_bytes: bytes of matrices that one generated token reads
    bandwidth: bytes a second that the same number of threads reads from memory, of as many bytes as a token reads
    choices: what the C++ core chose for this processor; None where it does not run the model
    warnings: what may make the figures wrong
    parallel: rate of generation of several texts together, by their number
    """

    model: str
    threads: int
    prompt: Rate | None
    generation: Rate | None
    load_seconds: float
    peak_memory: int
    token_bytes: int
    bandwidth: float
    choices: CoreChoices | None = None
    warnings: tuple[str, ...] = ()
    parallel: Mapping[int, Rate] = field(default_factory=dict)

    @property
    def rates(self) -> list[tuple[str, Rate]]:
        """All that was measured, with its name."""
        found = [("prompt", self.prompt), ("generation", self.generation)]
        named = [(f"generation of {count} texts", rate) for count, rate in self.parallel.items()]
        return [(name, rate) for name, rate in found if rate is not None] + named

    def __repr__(self) -> str:
        """One line."""
        rates = "".join(f", {name} {rate.mean:.1f} tokens/s" for name, rate in self.rates)
        return f"<Speed {self.model!r}: {self.threads} threads{rates}>"

    def _repr_html_(self) -> str:
        rows = [(name, rate.tokens, f"{rate.mean:.2f}", f"{rate.deviation:.2f}") for name, rate in self.rates]
        title = f"{self.model}, {self.threads} threads, peak memory {human_bytes(self.peak_memory)}"
        return html_table(title, rows, headings=("", "tokens", "tokens/s", "deviation"))

    @property
    def read_rate(self) -> float | None:
        """Bytes a second that generation reads."""
        return None if self.generation is None else self.generation.mean * self.token_bytes

    def to_dict(self) -> dict[str, Any]:
        """Numbers and strings, ready for JSON."""
        rate = self.read_rate
        return {
            "model": self.model,
            "threads": self.threads,
            "prompt": None if self.prompt is None else self.prompt.to_dict(),
            "generation": None if self.generation is None else self.generation.to_dict(),
            "parallel": {str(count): rate.to_dict() for count, rate in self.parallel.items()},
            "load_seconds": self.load_seconds,
            "peak_memory_bytes": self.peak_memory,
            "bytes_per_token": self.token_bytes,
            "read_bytes_per_second": rate,
            "bandwidth_bytes_per_second": self.bandwidth,
            "bandwidth_share": None if rate is None else rate / self.bandwidth,
            "processor": processor_name(),
            "choices": None if self.choices is None else self.choices.to_dict(),
            "warnings": list(self.warnings),
        }


def check_parallel(counts: Sequence[int], gen: int) -> None:
    """Raise UsageError for numbers of texts out of range, or if nothing is generated."""
    wrong = [count for count in counts if not 1 <= count <= MOST_PARALLEL]
    if wrong:
        raise UsageError(f"--parallel={wrong[0]}: expected 1 to {MOST_PARALLEL} texts.")
    if counts and gen == 0:
        raise UsageError("--parallel: --gen=0 leaves nothing to generate; give 1 or more.")


def check_counts(context: int, *, prompt: int | None, gen: int | None, repeat: int) -> tuple[int, int]:
    """The number of tokens to measure, for the prompt and for generation.

    None becomes the usual number, or the context if that is less. The two are measured apart, each with an empty
    cache. Raises UsageError for a number out of range.
    """
    for name, count, least in (("prompt", prompt, 0), ("gen", gen, 0), ("repeat", repeat, 1)):
        if count is not None and count < least:
            raise UsageError(f"--{name}={count}: expected {least} or more.")
        if name != "repeat" and count is not None and count > context:
            raise UsageError(f"--{name}={count}: expected at most the model's context of {context} tokens.")
    if prompt == gen == 0:
        raise UsageError("--prompt=0 --gen=0: nothing to measure; give one of them 1 or more.")
    return (
        min(DEFAULT_PROMPT, context) if prompt is None else prompt,
        min(DEFAULT_GEN, context) if gen is None else gen,
    )


def measure_speed(
    model: Runner, *, prompt: int, gen: int, repeat: int = DEFAULT_REPEAT, report: Report = silent
) -> tuple[Rate | None, Rate | None]:
    """The rates of reading a prompt and of generating tokens one by one, each starting with an empty cache.

    They are llama-bench's pp and tg: after a warm-up, without sampling, with random tokens, which do not change the
    time. A rate with 0 tokens is not measured.
    prompt, gen: number of tokens of one measurement
    report: called with the stages "prompt" and "generate", in tokens
    """
    network, random = model.decoder, np.random.default_rng(0)
    ids = random.integers(0, model.config.vocab, (1, max(prompt, gen)))
    return (
        _rate(network, ids[:, :prompt], prompt, repeat, _Meter("prompt", prompt * (repeat + 1), report)),
        _rate(network, ids[:, :gen], 1, repeat, _Meter("generate", gen * repeat + 1, report)),
    )


def measure_parallel(
    model: Runner, counts: Sequence[int], *, gen: int, repeat: int = DEFAULT_REPEAT, report: Report = silent
) -> dict[int, Rate]:
    """The rate of generating several texts together, one token of each in a step, by the number of texts.

    gen: number of tokens of each text
    report: called with the stage "generate together", in tokens
    """
    meter = _Meter("generate together", sum(count * gen * repeat for count in counts), report)
    random = np.random.default_rng(0)
    found = {}
    for count in counts:
        ids = random.integers(0, model.config.vocab, (count, gen))
        cache = model.decoder.new_cache(gen, batch=count)
        seconds = tuple(_feed(model.decoder, cache, ids, 1, meter) for _ in range(repeat))
        found[count] = Rate(count * gen, seconds)
    return found


class _Meter:
    """Reports the number of tokens done, at most every REPORT_EVERY seconds."""

    def __init__(self, stage: str, total: int, report: Report) -> None:
        self._stage, self._total, self._report = stage, total, report
        self._done, self._reported = 0, 0.0

    def add(self, tokens: int) -> None:
        self._done += tokens
        now = time.perf_counter()
        if now - self._reported > REPORT_EVERY or self._done == self._total:
            self._reported = now
            self._report(Progress(self._stage, self._done, self._total, "tokens"))


def _rate(network: Network, ids: np.ndarray, step: int, repeat: int, meter: _Meter) -> Rate | None:
    """The rate for ids int64 [1, n], fed `step` at a time after one step of warm-up; None if n is 0."""
    count = ids.shape[1]
    if count == 0:
        return None
    meter.add(0)
    cache = network.new_cache(count)
    _feed(network, cache, ids[:, :step], step, meter)
    before = _times(network)
    seconds = tuple(_feed(network, cache, ids, step, meter) for _ in range(repeat))
    after = _times(network)
    return Rate(count, seconds, {part: after[part] - before[part] for part in after})


def _times(network: Network) -> dict[str, float]:
    return network.times() if isinstance(network, Timed) else {}


def _feed(network: Network, cache: Any, ids: np.ndarray, step: int, meter: _Meter) -> float:
    """Seconds for ids int64 [rows, n], fed `step` at a time. The cache is emptied first."""
    for slot in range(ids.shape[0]):
        cache.truncate(slot, 0)
    started = time.perf_counter()
    for start in range(0, ids.shape[1], step):
        network.prefill(ids[:, start : start + step], cache)
        meter.add(step * ids.shape[0])
    return time.perf_counter() - started
