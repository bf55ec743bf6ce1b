"""Training of the whole model: what is simulated is what is written, and it comes nearer to the original."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.calibration import end_to_end
from bitsmith.calibration.distilled import TopLogits
from bitsmith.calibration.hidden import HiddenStates
from bitsmith.calibration.trainable import ScaledMatrix, Start, TrainableMatrix
from bitsmith.errors import UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.cli.command import Command

FORMATS = (
    *(
        "int2-g64",
        "int3-g32-asym",
        "int4-g128-f16",
        "int8-channel",
        "nf4",
        "fp8",
        "q4_0",
        "q4_1",
        "q2_k",
        "q3_k",
        "q4_k",
    ),
    *("q5_k", "q6_k", "q8_0", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4"),
)
QUICK: dict[str, Any] = {"steps": 6, "batch": 4, "calibration_tokens": 1024, "calibration_context": 64, "threads": 1}


def rounded(name: str) -> tuple[np.ndarray, QuantTensor]:
    w = np.random.default_rng(0).standard_normal((24, 256)).astype(np.float32)
    format = get_format(name)
    codes, params = nearest(w, format)
    return w, QuantTensor(format, codes, params)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_simulated_is_what_is_stored(name: str) -> None:
    w, tensor = rounded(name)
    generator = torch.Generator().manual_seed(1)
    for matrix in (ScaledMatrix(tensor), TrainableMatrix(Start(w, tensor))):
        assert np.array_equal(matrix.values().detach().numpy(), tensor.values())
        with torch.no_grad():
            for change in matrix.changes.values():
                change += 0.05 * torch.randn(change.shape, generator=generator)
        stored = matrix.frozen()
        assert np.array_equal(matrix.values().detach().numpy(), stored.values())
        assert not matrix.changes or not np.array_equal(stored.values(), tensor.values())
        if isinstance(matrix, ScaledMatrix):
            assert np.array_equal(stored.codes, tensor.codes)


def test_gradients_of_scales() -> None:
    _, tensor = rounded("int3-g32-asym")
    matrix = ScaledMatrix(tensor)
    weights = torch.randn(24, 256, generator=torch.Generator().manual_seed(2))
    (matrix.values() * weights).sum().backward()  # type: ignore[no-untyped-call]
    scale = torch.tensor(np.asarray(tensor.params["scale"], np.float32), requires_grad=True)
    zero = torch.tensor(np.asarray(tensor.params["zero"], np.float32))
    codes = torch.tensor(np.asarray(tensor.codes, np.float32)).reshape(24, -1, 32)
    values = (codes - zero[:, :, None]) * scale[:, :, None]
    (values.reshape(24, 256) * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert scale.grad is not None
    torch.testing.assert_close(matrix.changes["scale"].grad, scale.grad * scale.detach(), rtol=1e-4, atol=1e-4)


def test_divergence_is_that_of_all_tokens_where_all_are_kept() -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = HiddenStates(2, 5, 7)
    hidden.write(slice(0, 2), torch.randn(2, 5, 7, generator=generator))
    head = torch.randn(40, 7, generator=generator)
    teacher = TopLogits.of(hidden, lambda x: x @ head.T, 40)
    logits = torch.randn(2, 5, 40, generator=generator, requires_grad=True)
    theirs = (hidden.read(slice(0, 2)) @ head.T).log_softmax(-1)
    expected = (theirs.exp() * (theirs - logits.log_softmax(-1))).sum(-1).mean()
    found = teacher.divergence(np.array([0, 1]), logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    few = TopLogits(teacher.ids[:, :, :4], teacher.log_probs[:, :, :4]).divergence(np.array([0, 1]), logits)
    assert 0 < float(few.detach()) < float(expected.detach())


def _first_choices(model: Path, tokens: np.ndarray) -> np.ndarray:
    return bitsmith.load(model, kernel="torch").logits(tokens).argmax(-1)


@pytest.mark.parametrize(
    ("to", "options"),
    [
        ("native/int2-g32", {}),
        ("native/int2-g32", {"train": "all"}),
        ("q4_0", {"train": "all"}),
        ("gptq/int3", {}),
    ],
)
def test_the_file_holds_what_was_trained(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, options: dict[str, Any]
) -> None:
    students: list[end_to_end.Student] = []
    trained: list[end_to_end.Trained] = []
    original = end_to_end.train

    def watched(student: end_to_end.Student, *words: Any) -> end_to_end.Trained:
        students.append(student)
        assert _first_choices(tiny, words[1]) == pytest.approx(words[0].ids[:, :, 0].numpy())
        trained.append(original(student, *words))
        return trained[-1]

    monkeypatch.setattr(end_to_end, "train", watched)
    judged = count(1)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0 / next(judged))  # the last state wins
    out = tmp_path / ("out.gguf" if "/" not in to else "out")
    made = bitsmith.tune_qat(tiny, to=to, out=out, **(QUICK | options))
    assert trained[0].step == (QUICK | options)["steps"]
    assert any("divergence from the original" in note for note in made.notes)
    checkpoint = open_checkpoint(out)
    compared = 0
    for rows, matrix in zip(students[0]._rows, students[0].matrices, strict=True):
        if "attn_q" in rows.name or "attn_k" in rows.name:  # in another order in GGUF
            continue
        stored = checkpoint.source.rows(checkpoint.place(rows.name), rows.start, rows.start + len(rows.weight))
        assert np.array_equal(matrix.values().detach().numpy(), stored), rows.name
        compared += 1
    assert compared >= 10


def test_training_that_gains_nothing_gives_the_rounders_result(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {name: value for name, value in QUICK.items() if name not in ("steps", "batch")}
    bitsmith.quantize(tiny, to="q4_0", method="gptq", out=tmp_path / "gptq.gguf", **words)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0)
    made = bitsmith.tune_qat(tiny, to="q4_0", train="all", out=tmp_path / "qat.gguf", **QUICK)
    assert any("training gained nothing" in note for note in made.notes)
    before, after = (open_checkpoint(tmp_path / f"{name}.gguf").source for name in ("gptq", "qat"))
    assert all(np.array_equal(before.rows(name), after.rows(name)) for name in before.tensors)


def test_codes_stay_where_scales_are_trained(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = count(1)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0 / next(judged))  # the last state wins
    words = {name: value for name, value in QUICK.items() if name not in ("steps", "batch")}
    bitsmith.quantize(tiny, to="native/nf4", method="gptq", out=tmp_path / "gptq", **words)
    bitsmith.tune_qat(tiny, to="native/nf4", out=tmp_path / "qat", **QUICK)
    before, after = (open_checkpoint(tmp_path / name).source for name in ("gptq", "qat"))
    changed = 0
    for name, info in before.tensors.items():
        codes, trained = before.codes(name), after.codes(name)
        if codes is not None and trained is not None:
            assert np.array_equal(codes.codes, trained.codes)
            changed += not np.array_equal(codes.params["scale"], trained.params["scale"])
        elif info.rows == 1 and name != "model.norm.weight":
            changed += not np.array_equal(before.rows(name), after.rows(name))
    assert changed > 10


def test_the_same_run_gives_the_same_bytes(tiny: Path, tmp_path: Path, bitsmith_command: Command) -> None:
    words = ["--steps", 4, "--batch", 4, "--calibration-tokens", 1024, "--calibration-context", 64, "--threads", 1]
    for name in ("a", "b"):
        result = bitsmith_command("tune", "qat", tiny, "--to", "iq4_nl", "--out", tmp_path / f"{name}.gguf", *words)
        assert result.code == 0, result
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    said = bitsmith_command("inspect", tmp_path / "a.gguf", "--recipe").out
    assert "bitsmith tune qat tiny --train scales --steps 4 --batch 4 --to gguf/iq4_nl" in said


def test_what_is_refused(tiny: Path, tmp_path: Path) -> None:
    for options, said in (
        ({"method": "nearest", "calibration": "default"}, "training goes on from codes"),
        ({"method": "awq+gptq"}, "training goes on from codes"),
        ({"effort": "fast"}, "does not keep"),
        ({"train": "some"}, "expected scales, all"),
        ({"steps": 0}, "expected 1 or more"),
    ):
        with pytest.raises(UsageError, match=said):
            bitsmith.tune_qat(tiny, to="native/int4-g64", out=tmp_path / "x", **(QUICK | options))
