"""Reports that a stopped run has kept are those of the run."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from bitsmith.calibration.kept_rows import reports_from_values, reports_to_values
from bitsmith.calibration.notes import rounding_notes
from bitsmith.calibration.rounding import RoundingReport
from bitsmith.quant.rounders.gptq import GptqReport


def test_reports_keep_all_that_notes_are_made_of() -> None:
    found = GptqReport(rows=8, error=0.25, nearest=0.5, kept=1, damping=0.01, raised=False, dead=2)
    reports = {"blk.0.attn_q": RoundingReport(found, cut=True), "blk.0.attn_k": RoundingReport(recovered=True)}
    kept = reports_from_values(json.loads(json.dumps(reports_to_values(reports))))
    assert kept == reports
    assert rounding_notes(kept) == rounding_notes(reports)
    assert any("memory ran short" in note for note in rounding_notes(kept))
