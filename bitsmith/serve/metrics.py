"""Figures of the engine for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bitsmith.serve.engine import Engine


class _Figures(Collector):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment."""
        counts = self._engine.counts
        for name, words, value in (
            ("prompt_tokens", "Tokens of prompts that were computed", counts.prompt_tokens),
            ("reused_tokens", "Tokens of prompts that the cache held", counts.reused_tokens),
            ("generated_tokens", "Tokens drawn", counts.drawn_tokens),
            ("guessed_tokens", "Tokens that were guessed", counts.guessed_tokens),
            ("right_guesses", "Guessed tokens that came true", counts.right_guesses),
            ("requests_finished", "Answers that ended", counts.finished),
            ("requests_cancelled", "Answers that nobody wanted any more", counts.cancelled),
            ("requests_failed", "Answers that failed", counts.failed),
            ("steps", "Steps of the model", counts.steps),
            ("step_rows", "Rows of all steps; over steps, how many texts share one", counts.rows),
            ("busy_seconds", "Seconds that the model computed", counts.busy_seconds),
        ):
            yield CounterMetricFamily(f"bitsmith_{name}", words, value)
        running, waiting = self._engine.load
        yield GaugeMetricFamily("bitsmith_requests_running", "Texts that are computed", running)
        yield GaugeMetricFamily("bitsmith_requests_waiting", "Texts in the queue", waiting)


class Metrics:
    """The page of all figures."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Figures(engine))

    def page(self) -> bytes:
        """In Prometheus's text form."""
        return generate_latest(self._registry)
