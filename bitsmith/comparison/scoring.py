"""Measures the original once and each candidate against it, one model in memory at a time; asks the ledger first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bitsmith.comparison.candidates import Candidate
from bitsmith.comparison.config import CompareConfig
from bitsmith.comparison.ledger import Ledger, What
from bitsmith.comparison.llama_logits import open_llama_logits, write_llama_logits
from bitsmith.comparison.loading import EXACT, OneModel, kernel_of
from bitsmith.comparison.measure import open_reference, record_original, score, score_original
from bitsmith.comparison.reference_logits import ReferenceLogits, ReferenceWriter, file_bytes, reference_key
from bitsmith.comparison.result import Floor
from bitsmith.comparison.scores import TokenScores
from bitsmith.comparison.statistics import Draws, summarize
from bitsmith.comparison.texts import DomainTokens
from bitsmith.errors import FileError
from bitsmith.evaluation.windows import Windows
from bitsmith.system.folders import cache_folder
from bitsmith.system.progress import Progress, Report

DEFINITION = "tokens-1"  # of the values of each token; a change of their meaning gets another name
FLOOR_TOKENS = 1024  # scored ones that the noise floor is measured on, in whole windows
_FLOORS = {"another order of summation": "float32", "bfloat16 arithmetic": "bfloat16"}


@dataclass(frozen=True)
class Tools:
    """What all measurements of a run share."""

    ledger: Ledger
    model: OneModel
    config: CompareConfig
    report: Report
    original: Candidate

    def kernel(self, candidate: Candidate) -> str:
        """The kernel that measures a candidate. The original runs on "exact" or "torch", as in `bitsmith eval`.

        Raises UsageError or UnsupportedError where the wanted one cannot.
        """
        wanted = self.config.kernel
        if candidate is self.original:
            wanted = "torch" if wanted == "torch" else None
        return kernel_of(candidate.checkpoint, wanted)


class Scoring:
    """Scores of models on all domains.

    notes: what the user should know about the measurement, filled while it goes on
    """

    def __init__(
        self,
        original: Candidate,
        sha256: str,
        tokens: Sequence[DomainTokens],
        tools: Tools,
    ) -> None:
        self._original, self._own_sha256, self._tokens, self._tools = original, sha256, tokens, tools
        self._kernel = tools.kernel(original)
        self._ledger, self._config, self._report = tools.ledger, tools.config, tools.report
        self._model = tools.model
        self._given = None if tools.config.logits is None else open_llama_logits(tools.config.logits)
        self._source = self._kernel
        if self._given is not None:
            self._source = f"llama.cpp's file {tools.ledger.sha256([self._given.path], tools.report)}"
        self._folder = cache_folder() / "compare" / "logits"
        self._done, self._total = 0, 0
        self.notes: list[str] = []

    @property
    def windows(self) -> int:
        """Number of windows of all domains."""
        return sum(len(each.windows) for each in self._tokens)

    def sha256(self, candidate: Candidate) -> str:
        """Hash of a candidate's files."""
        return self._ledger.sha256(candidate.checkpoint.files, self._report)

    def todo(self, candidates: Sequence[Candidate]) -> int:
        """Number of windows that models must still be run over, with the original's."""
        missing = sum(
            len(each.windows)
            for candidate in candidates
            for each in self._tokens
            if self._ledger.get(self._what(candidate, each)) is None
        )
        own = sum(len(each.windows) for each in self._tokens if not self._path(each).is_file())
        known = all(self._ledger.get(self._what(self._original, each)) is not None for each in self._tokens)
        return missing + (0 if missing == 0 and known else own)

    def expect(self, candidates: Sequence[Candidate]) -> None:
        """Count what is to do, for the progress."""
        self._total = self.todo(candidates)

    def reference_bytes(self, wanted: bool) -> int:
        """Bytes of the original's predictions that are not there yet."""
        if not wanted:
            return 0
        vocab = self._original.config.vocab
        new = [each.windows for each in self._tokens if not self._path(each).is_file()]
        return sum(file_bytes(len(windows), windows.targets.shape[1], vocab) for windows in new)

    def window_seconds(self) -> float | None:
        """Seconds that the original took for a window, the last time it was measured with this context."""
        found = [
            kept.figures.get("seconds_per_window")
            for kept in self._ledger.measurements("scores")
            if kept.what.model_sha256 == kept.what.original_sha256 == self._own_sha256
            and kept.figures.get("context") == self._config.context
        ]
        return float(found[-1]) if found and isinstance(found[-1], float) else None

    def spread(self, candidates: Sequence[Candidate]) -> None:
        """Measure what is not known yet on the run's workers, if it has some."""
        if self._config.executor is None or self._given is not None:
            return
        from bitsmith.comparison.spread import measure_spread

        for tokens in self._tokens:
            missing = [each for each in candidates if self._known(self._what(each, tokens), tokens) is None]
            if missing:
                measure_spread(
                    (self._original, self._kernel),
                    [(each, self._tools.kernel(each)) for each in missing],
                    tokens,
                    self._config,
                    lambda one, text, scores: self._keep(self._what(one, text), text, scores, None),
                    self._report,
                )

    def original(self) -> list[TokenScores]:
        """What the original does on each token, one a domain."""
        return [self._original_on(each) for each in self._tokens]

    def _original_on(self, tokens: DomainTokens) -> TokenScores:
        what = self._what(self._original, tokens)
        known = self._known(what, tokens)
        if known is not None:
            return known
        started, fresh = time.perf_counter(), not self._path(tokens).is_file()
        with self._reference(tokens) as reference:
            seconds = time.perf_counter() - started
            scores = score_original(reference, tokens.windows)
        self._keep(what, tokens, scores, seconds if fresh else None)
        return scores

    def scores(self, candidate: Candidate) -> list[TokenScores]:
        """What a candidate does on each token, one a domain. Raises BitsmithError if it cannot be run."""
        kernel = self._tools.kernel(candidate)
        found: list[TokenScores | None] = [self._known(self._what(candidate, each), each) for each in self._tokens]
        if any(each is None for each in found):
            references = [self._reference(each) for each in self._tokens]  # before the candidate takes its memory
            model = self._model.get(candidate.checkpoint, kernel)
            for number, (tokens, reference) in enumerate(zip(self._tokens, references, strict=True)):
                with reference:
                    if found[number] is None:
                        report = self._counting(candidate.name, len(tokens.windows))
                        started = time.perf_counter()
                        one = score(model, tokens.windows, reference, threads=self._config.threads, report=report)
                        self._keep(self._what(candidate, tokens), tokens, one, time.perf_counter() - started)
                        found[number] = one
        return [each for each in found if each is not None]

    def floors(self) -> tuple[Floor, ...]:
        """What rounding does to the original: it is run with torch, whose sums have another order, and in bfloat16."""
        kinds = self._floor_kinds()
        if not kinds:
            self.notes.append("the noise floor was not measured, since torch is not installed")
            return ()
        tokens, windows = self._tokens[0], self._floor_windows()
        read = tokens if self._path(tokens).is_file() else replace(tokens, windows=windows)
        count = windows.targets.size
        clusters = tokens.clusters[:count] - tokens.clusters[:count].min()
        found = []
        for name, dtype in kinds.items():
            what = self._floor_what(dtype)
            kept = self._ledger.get(what)
            if kept is None:
                self._report(Progress("noise floor", 0, 1, "passes", name))
                with self._reference(read) as reference:
                    model = self._model.get(self._original.checkpoint, "torch", dtype)
                    scores = score(model, windows, reference, threads=self._config.threads)
                figures: dict[str, float] = {"context": self._config.context, "windows": len(windows), "tokens": count}
                figures |= {"loss": float(scores.losses.mean()), "kld": float(scores.kld.mean())}
                self._ledger.put(what, figures, scores.to_bytes())
            else:
                scores = TokenScores.from_bytes(kept.data, count)
            summary = summarize([scores], [scores], Draws([clusters])).summary
            found.append(Floor(name, summary.kld, count))
        return tuple(found)

    def floor_windows(self) -> int:
        """Number of windows that the noise floor still takes, of all kinds of rounding together."""
        missing = [dtype for dtype in self._floor_kinds().values() if self._ledger.get(self._floor_what(dtype)) is None]
        return len(missing) * len(self._floor_windows())

    def _floor_kinds(self) -> dict[str, str]:
        from importlib.util import find_spec

        if find_spec("torch") is None:
            return {}
        if self._kernel == EXACT:
            return _FLOORS
        return {name: dtype for name, dtype in _FLOORS.items() if dtype != "float32"}  # it was measured with torch

    def _floor_windows(self) -> Windows:
        windows = self._tokens[0].windows
        return Windows(windows.tokens[: -(-FLOOR_TOKENS // windows.targets.shape[1])])

    def _floor_what(self, dtype: str) -> What:
        more = f" first {len(self._floor_windows())} windows, torch {dtype}"
        return replace(self._what(self._original, self._tokens[0], more), kind="floor")

    def write_logits(self, path: str | Path, *, force: bool) -> Path:
        """Write the original's predictions on the first text as llama.cpp's file."""
        with self._reference(self._tokens[0]) as reference:
            return write_llama_logits(path, reference, self._tokens[0].windows, force=force)

    def _path(self, tokens: DomainTokens) -> Path:
        return self._folder / f"{self._reference_key(tokens)[:32]}.logits"

    def _reference_key(self, tokens: DomainTokens) -> str:
        return reference_key(self._own_sha256, tokens.sha256, self._source)

    def _reference(self, tokens: DomainTokens) -> ReferenceLogits:
        """The original's predictions, computed if they are not there."""
        path, key, windows = self._path(tokens), self._reference_key(tokens), tokens.windows
        found = open_reference(path, key)
        if found is not None:
            return found
        given = self._given
        vocab = self._original.config.vocab if given is None else given.vocab
        rows = windows.targets.shape[1]
        with ReferenceWriter(path, key, windows=len(windows), rows=rows, vocab=vocab) as writer:
            if given is not None:
                for each in given.of(windows, tokens.name):
                    writer.add(each)
                writer.finish()
                return ReferenceLogits(path, key)
            model = self._model.get(self._original.checkpoint, self._kernel)
            report = self._counting(self._original.name, len(windows))
            record_original(model, windows, writer, threads=self._config.threads, report=report)
            writer.finish()
        return ReferenceLogits(path, key)

    def _counting(self, name: str, windows: int) -> Report:
        """Progress of one pass as a part of all passes."""
        before = self._done

        def report(progress: Progress) -> None:
            self._done = before + progress.done
            self._report(Progress("compare", self._done, max(self._total, self._done), "windows", name))

        return report

    def _what(self, candidate: Candidate, tokens: DomainTokens, more: str = "") -> What:
        kernel = self._tools.kernel(candidate)
        return What(
            "scores",
            candidate.name,
            self.sha256(candidate),
            self._original.name,
            self._own_sha256,
            tokens.name,
            tokens.sha256,
            f"{DEFINITION} context {self._config.context} kernel {kernel} against {self._source}{more}",
        )

    def _known(self, what: What, tokens: DomainTokens) -> TokenScores | None:
        kept = self._ledger.get(what)
        try:
            return None if kept is None else TokenScores.from_bytes(kept.data, tokens.tokens)
        except FileError:  # measured again, and replaced
            return None

    def _keep(self, what: What, tokens: DomainTokens, scores: TokenScores, seconds: float | None) -> None:
        figures = {
            "context": self._config.context,
            "windows": len(tokens.windows),
            "tokens": tokens.tokens,
            "file_sha256": tokens.text_sha256,
            "loss": float(scores.losses.mean()),
            "kld": float(scores.kld.mean()),
            "top1": float(scores.same_top.mean()),
        }
        if seconds is not None:
            figures["seconds_per_window"] = seconds / len(tokens.windows)
        self._ledger.put(what, figures, scores.to_bytes())
