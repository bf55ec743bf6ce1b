"""Gathers the candidates of a comparison: opens the files, finds or makes the formats, and notes what fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from bitsmith.comparison.candidates import Candidate, Maker, named_apart, open_candidate
from bitsmith.comparison.config import CompareConfig
from bitsmith.comparison.overlap import check_recorded
from bitsmith.comparison.result import Failure
from bitsmith.comparison.texts import Domain, DomainTokens
from bitsmith.errors import BitsmithError
from bitsmith.evaluation.measure import read_windows, require_same_tokens
from bitsmith.system.progress import Report
from bitsmith.texts.sources import names_of

_log = logging.getLogger(__name__)


class Failures:
    """Candidates that could not be compared. told: called with each"""

    def __init__(self, told: Callable[[Failure], None] | None = None) -> None:
        self._told = told
        self.found: list[Failure] = []

    def add(self, name: str, error: Exception) -> None:
        """Note a candidate that failed, and why."""
        reason = error.flags if isinstance(error, BitsmithError) else str(error)
        self.found.append(Failure(name, reason))
        _log.warning("%s is left out: %s", name, error)
        if self._told is not None:
            self._told(self.found[-1])


def scored_texts(model: Candidate, texts: Sequence[tuple[Domain, DomainTokens]]) -> dict[str, str]:
    """The windows of each text as text: all of it, or the first `max_windows`."""
    decode = model.tokenizer.decode
    return {domain.name: decode(tokens.windows.tokens.reshape(-1).tolist()) for domain, tokens in texts}


class Gathering:
    """Candidates: files that are there, and formats that are made of the original.

    original: its tokens of the texts are those of `texts`; every candidate must have the same
    notes: texts that a file was calibrated on, where they share a little or could not be checked
    """

    def __init__(
        self,
        original: Candidate,
        maker: Maker,
        config: CompareConfig,
        failures: Failures,
        texts: Sequence[tuple[Domain, DomainTokens]],
    ) -> None:
        self._original, self._maker, self._config, self._failures = original, maker, config, failures
        self._texts = texts
        self._there: list[Candidate] = []
        self._made: dict[str, Candidate] = {}
        self.notes: list[str] = []

    def open(self, files: Sequence[str | Path]) -> None:
        """Open the files that are there, and what was made before."""
        for path in files:
            try:
                candidate = open_candidate(path)
                self._require_same_tokens(candidate)
                self._require_other_text(candidate)
                self._there.append(candidate)
            except (BitsmithError, OSError) as error:
                self._failures.add(str(path), error)
        found = {name: self._maker.found(name) for name in self._config.targets}
        self._made = {name: candidate for name, candidate in found.items() if candidate is not None}

    @property
    def missing(self) -> tuple[str, ...]:
        """Formats that have to be made."""
        return tuple(name for name in self._config.targets if name not in self._made)

    @property
    def candidates(self) -> list[Candidate]:
        """Those that are there, with different names: the files first, the formats in their order."""
        made = [self._made[name] for name in self._config.targets if name in self._made]
        return named_apart([*self._there, *made])

    def make_seconds(self) -> float:
        """The expected time of making what is missing."""
        total = 0.0
        for name in self.missing:
            try:
                total += self._maker.planned(name).expected_seconds
            except BitsmithError:  # it fails again when it is made, and is noted there
                continue
        return total

    def make(self, report: Report) -> None:
        """Make what is missing: with a calibration all at once, else one by one, so that one may fail alone.

        Formats that cannot be planned are left out before the others are made together.
        """
        missing = self.missing
        if self._config.calibration_sources:
            missing = tuple(name for name in missing if self._plannable(name))
            groups = [missing] if missing else []
        else:
            groups = [(name,) for name in missing]
        for names in groups:
            try:
                self._made |= dict(zip(names, self._maker.make_all(names, report), strict=True))
            except BitsmithError as error:
                for name in names:
                    again = self._maker.found(name)
                    if again is None:
                        self._failures.add(name, error)
                    else:
                        self._made[name] = again

    def _plannable(self, name: str) -> bool:
        """Whether a format can be planned; one that cannot is noted."""
        try:
            self._maker.planned(name)
        except BitsmithError as error:
            self._failures.add(name, error)
            return False
        return True

    def _require_other_text(self, candidate: Candidate) -> None:
        """Raise UsageError for a candidate that was calibrated on a text of the comparison."""
        if not candidate.calibrated:
            return
        given = (*self._config.calibration_sources, *names_of(self._config.calibrated_on))
        domains = [domain for domain, _ in self._texts]
        notes, unknown = check_recorded(domains, candidate.calibrated, given, scored_texts(self._original, self._texts))
        self.notes += [note for note in notes if note not in self.notes]
        for source in unknown:
            self.notes.append(
                f"{candidate.name} was calibrated on {source}; this text was not checked against it, give "
                "`--calibrated-on`"
            )

    def _require_same_tokens(self, candidate: Candidate) -> None:
        """Raise UsageError for a candidate with another vocabulary."""
        context, most = self._config.context, self._config.max_windows
        for domain, tokens in self._texts:
            theirs = read_windows(candidate, domain.texts, context=context, max_windows=most).windows
            advice = "Compare it with the model that it was made from."
            require_same_tokens(candidate, self._original, theirs, tokens.windows, name=domain.name, advice=advice)
