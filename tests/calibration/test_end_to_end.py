"""Training of the whole model: what is simulated is what is written, and it comes nearer to the original."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bitsmith
from bitsmith.calibration import end_to_end
from bitsmith.calibration.distilled import LastStates
from bitsmith.calibration.hidden import HiddenStates
from bitsmith.calibration.trainable import ScaledMatrix, Start, TrainableMatrix
from bitsmith.errors import BitsmithError, UsageError
from bitsmith.models.arch.names import unpermute_rows
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.cli.command import Command
from tests.tiny import CONFIG, HEADS, KV_HEADS, make_folder, weights

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
    *("q5_0", "q5_1", "fp4"),
    *("q5_k", "q6_k", "q8_0", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4"),
)
QUICK: dict[str, Any] = {"steps": 6, "batch": 4, "calibration_tokens": 1024, "calibration_context": 64, "threads": 1}
EFFORTS = ("fast", "normal", "high")
TRAINING = ("steps", "batch", "training_tokens", "method")
QUICK |= {"training_tokens": 2048, "method": "gptq"}


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


def _original() -> tuple[LastStates, torch.Tensor]:
    """An original of 3 windows of 5 tokens, and its logits of 40 tokens."""
    generator = torch.Generator().manual_seed(3)
    hidden = HiddenStates(3, 5, 7)
    hidden.write(slice(0, 3), torch.randn(3, 5, 7, generator=generator))
    head = torch.randn(40, 7, generator=generator)
    return LastStates(hidden, lambda x: x @ head.T), hidden.read(slice(0, 3)) @ head.T


def test_divergence_and_its_gradient() -> None:
    teacher, theirs = _original()
    generator = torch.Generator().manual_seed(4)
    logits = (3 * torch.randn(2, 5, 40, generator=generator)).requires_grad_(True)
    known = theirs[[2, 0]].log_softmax(-1)
    expected = (known.exp() * (known - logits.log_softmax(-1))).sum(-1).mean()
    (wanted,) = torch.autograd.grad(expected, logits)
    found = teacher.divergence(np.array([2, 0]), logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], wanted, rtol=1e-4, atol=1e-7)
    assert abs(float(teacher.divergence(np.arange(3), theirs))) < 1e-6


def test_distance_of_hidden_states() -> None:
    teacher, _ = _original()
    hidden = teacher.states(np.array([1]))
    assert float(teacher.distance(np.array([1]), hidden)) == 0.0
    torch.testing.assert_close(teacher.distance(np.array([1]), 1.5 * hidden), torch.tensor(0.25))


def _share_of_first_choices(model: Path, tokens: np.ndarray, teacher: LastStates) -> float:
    own = bitsmith.load(model, kernel="torch").logits(tokens).argmax(-1)
    return float((own == teacher.log_probs(np.arange(len(tokens))).argmax(-1).numpy()).mean())


QUICK_FILES = (
    *(("native/int2-g32", "scales"), ("native/int2-g32", "all"), ("q4_0", "all"), ("gptq/int3", "scales")),
    ("q2_k", "scales"),
)
SLOW_FILES = tuple(
    (to, train)
    for train in ("scales", "all")
    for to in (
        *("q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "q4_0", "q4_1", "q5_0", "q5_1"),
        *(
            f"native/{name}"
            for name in ("nf4", "fp4", "fp8", "mxfp4", "nvfp4", "int2-g64", "int3-g32-asym", "int4-g64")
        ),
        *(f"native/{name}" for name in ("int8-g64", "int8-channel")),
        *("gptq/int4", "awq/int4", "compressed/w4a16", "bnb/nf4"),
    )
    if (to, train) not in QUICK_FILES
)


@pytest.mark.parametrize(
    ("to", "train"), [*QUICK_FILES, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW_FILES)]
)
def test_the_file_holds_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, train: str) -> None:
    """Decoded from the file, every trained matrix equals its simulated values to the bit."""
    wide = {"hidden_size": 256, "intermediate_size": 256}  # the blocks of K-quants
    model = make_folder(tmp_path / "model", tensors=weights(CONFIG | wide), **wide)
    students: list[end_to_end.Student] = []
    trained: list[end_to_end.Trained] = []
    original = end_to_end.train

    def watched(student: end_to_end.Student, *words: Any, **named: Any) -> end_to_end.Trained:
        students.append(student)
        assert _share_of_first_choices(model, words[1], words[0]) > 0.95  # the teacher multiplies in bfloat16
        trained.append(original(student, *words, **named))
        return trained[-1]

    monkeypatch.setattr(end_to_end, "train", watched)
    judged = count(1)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0 / next(judged))  # the last state wins
    out = tmp_path / ("out.gguf" if "/" not in to else "out")
    made = bitsmith.tune_qat(model, to=to, out=out, train=train, **QUICK)
    assert trained[0].step == QUICK["steps"]
    assert any("divergence from the teacher" in note for note in made.notes)
    checkpoint = open_checkpoint(out)
    compared = 0
    for rows, matrix in zip(students[0]._rows, students[0].matrices, strict=True):
        values = matrix.values().detach().numpy()
        name = checkpoint.place(rows.name)
        stored = checkpoint.source.rows(name, 0, checkpoint.source.tensors[name].rows)
        if checkpoint.naming == "gguf" and (".attn_q." in rows.name or ".attn_k." in rows.name):
            stored = unpermute_rows(stored, HEADS if ".attn_q." in rows.name else KV_HEADS)
        assert np.array_equal(values, stored[rows.start : rows.start + len(rows.weight)]), rows.name
        compared += 1
    assert compared >= 14


def test_training_that_gains_nothing_gives_the_rounders_result(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {name: value for name, value in QUICK.items() if name not in TRAINING}
    bitsmith.quantize(tiny, to="q4_0", method="gptq", out=tmp_path / "gptq.gguf", **words)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0)
    made = bitsmith.tune_qat(tiny, to="q4_0", train="all", out=tmp_path / "qat.gguf", **QUICK)
    assert any("training gained nothing" in note for note in made.notes)
    before, after = (open_checkpoint(tmp_path / f"{name}.gguf").source for name in ("gptq", "qat"))
    assert all(np.array_equal(before.rows(name), after.rows(name)) for name in before.tensors)


def test_codes_stay_where_scales_are_trained(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = count(1)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0 / next(judged))  # the last state wins
    words = {name: value for name, value in QUICK.items() if name not in TRAINING}
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
    words += ["--method", "gptq", "--training-tokens", 2048]
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
        ({"train": "some"}, "expected scales, all"),
        ({"to": "f16"}, "rounds nothing"),
        ({"to": "compressed/w8a8"}, "rounds the inputs"),
        ({"steps": 0}, "expected 1 or more"),
        ({"training_tokens": 0}, "expected 1 or more"),
        ({"optimizer": "sgd"}, "expected adam, adam-8bit"),
        ({"effort": "max"}, "give fast, normal or high"),
    ):
        with pytest.raises(UsageError, match=said):
            bitsmith.tune_qat(tiny, **({"to": "native/int4-g64", "out": tmp_path / "x"} | QUICK | options))


def test_effort_is_that_of_the_rounding(tiny: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {name: value for name, value in QUICK.items() if name != "method"} | {"dry_run": True}
    found = {
        effort: bitsmith.tune_qat(tiny, to="q4_0", out=tmp_path / "x", effort=effort, **words) for effort in EFFORTS
    }
    assert [made.method for made in found.values()] == ["gptq", "learned", "learned"]
    assert found["high"].expected_seconds > found["normal"].expected_seconds


def test_a_source_in_codes_says_why(tiny: Path, tmp_path: Path) -> None:
    bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "a.gguf")
    with pytest.raises(UsageError, match="codes of a source that suit the target are kept"):
        bitsmith.tune_qat(tmp_path / "a.gguf", to="q4_0", requantize=True, out=tmp_path / "b.gguf", **QUICK)


def test_a_format_whose_scales_stay_is_named(tiny: Path, tmp_path: Path) -> None:
    said = []
    for to, train in (("native/mxfp4", "scales"), ("native/mxfp4", "all"), ("native/int4-g64", "scales")):
        words = QUICK | {"train": train, "dry_run": True}
        said.append(bitsmith.tune_qat(tiny, to=to, out=tmp_path / "x", **words).warnings)
    assert any("the scales of mxfp4 are not trained" in each for each in said[0])
    assert not any("not trained" in each for each in (*said[1], *said[2]))


def test_a_loss_that_is_not_finite_ends_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged, steps = count(1), count(1)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0 / next(judged))  # the last state wins
    monkeypatch.setattr(end_to_end, "_JUDGED", 6)  # after every step
    original = LastStates.divergence

    def divergence(self: LastStates, windows: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
        return original(self, windows, logits) * (float("nan") if next(steps) == 4 else 1.0)

    monkeypatch.setattr(LastStates, "divergence", divergence)
    made = bitsmith.tune_qat(tiny, to="native/int4-g64", out=tmp_path / "out", **QUICK)
    note = next(note for note in made.notes if note.startswith("training"))
    assert "the state of step 3" in note
    assert "not finite at step 4" in note
    assert np.isfinite(bitsmith.load(tmp_path / "out", kernel="torch").logits(np.arange(8)[None])).all()


def test_another_teacher(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_folder(tmp_path / "other", tensors=weights(CONFIG, seed=5))
    seen: list[np.ndarray] = []
    original = end_to_end.train

    def watched(
        student: end_to_end.Student, teacher: LastStates, tokens: np.ndarray, *words: Any, **named: Any
    ) -> end_to_end.Trained:
        assert _share_of_first_choices(other, tokens, teacher) > 0.95
        seen.append(tokens)
        return original(student, teacher, tokens, *words, **named)

    monkeypatch.setattr(end_to_end, "train", watched)
    made = bitsmith.tune_qat(tiny, to="native/int4-g64", teacher=other, out=tmp_path / "out", **QUICK)
    assert seen
    assert made.manifest is not None
    assert json.loads(made.manifest.recipe)["training"]["teacher"] == "other"
    wide = make_folder(tmp_path / "wide", vocab_size=4128)
    with pytest.raises(UsageError, match="4,128 tokens"):
        bitsmith.tune_qat(tiny, to="native/int4-g64", teacher=wide, out=tmp_path / "x", **QUICK)


def test_hidden_states_of_another_teacher_are_not_learned(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_folder(tmp_path / "other", tensors=weights(CONFIG, seed=5))
    asked: list[float] = []
    original = LastStates.distance

    def watched(self: LastStates, windows: np.ndarray, hidden: torch.Tensor) -> torch.Tensor:
        found = original(self, windows, hidden)
        asked.append(float(found.detach()))
        return found

    monkeypatch.setattr(LastStates, "distance", watched)
    words = QUICK | {"steps": 2}
    bitsmith.tune_qat(tiny, to="native/int4-g64", teacher=other, out=tmp_path / "a", **words)
    assert not asked
    bitsmith.tune_qat(tiny, to="native/int4-g64", out=tmp_path / "b", **words)
    assert len(asked) >= 2
    assert all(0 < each < 1 for each in asked)


def test_training_reads_more_text_than_rounding(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = end_to_end.train

    def watched(
        student: end_to_end.Student, teacher: LastStates, tokens: np.ndarray, *words: Any, **named: Any
    ) -> end_to_end.Trained:
        seen.append(tokens.size)
        return original(student, teacher, tokens, *words, **named)

    monkeypatch.setattr(end_to_end, "train", watched)
    for most, wanted in ((4096, 4096), (64, 1024)):
        words = QUICK | {"training_tokens": most, "steps": 1}
        made = bitsmith.tune_qat(tiny, to="native/int4-g64", out=tmp_path / str(most), **words)
        assert seen.pop() == wanted
        assert made.manifest is not None
        assert json.loads(made.manifest.recipe)["training"]["training_tokens"] == wanted


def test_what_lies_on_the_grid_is_not_trained(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {name: value for name, value in QUICK.items() if name not in TRAINING}
    bitsmith.quantize(tiny, to="native/int4-g64", method="gptq", out=tmp_path / "first", **words)
    bitsmith.convert(tmp_path / "first", to="f32", out=tmp_path / "floats")
    judged = count(1)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0 / next(judged))  # the last state wins
    made = bitsmith.tune_qat(tmp_path / "floats", to="native/int4-g64", train="all", out=tmp_path / "out", **QUICK)
    assert len(made.recovered) == 14
    before, after = (open_checkpoint(tmp_path / name).source for name in ("first", "out"))
    for name, info in before.tensors.items():
        if info.rows > 1:
            assert np.array_equal(before.rows(name), after.rows(name)), name


def test_most_effort_trains_scales(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "usual", lambda depth: end_to_end.EndToEnd(depth, steps=3, batch=4))
    words = {name: value for name, value in QUICK.items() if name not in TRAINING}
    made = bitsmith.quantize(tiny, to="native/int3-g64", method="gptq", effort="max", out=tmp_path / "a", **words)
    assert any(note.startswith("training") for note in made.notes)
    assert made.manifest is not None
    assert json.loads(made.manifest.recipe)["training"]["train"] == "scales"
    words["calibration"] = "default"
    for to, method, why in (
        ("native/int3-g64", "nearest", "does not run the model"),
        ("native/int3-g64", "awq+gptq", "rescales columns"),
        ("compressed/w8a8", "gptq", "rounds the inputs"),
    ):
        plan = bitsmith.quantize(tiny, to=to, method=method, effort="max", dry_run=True, out=tmp_path / "b", **words)
        assert any('effort="max": ' in warning and why in warning for warning in plan.warnings), plan.warnings


def test_a_teacher_whose_tokens_are_others(tiny: Path, tmp_path: Path) -> None:
    """As many tokens, and those of a sample text alike: two rare ones changed places."""
    other = make_folder(tmp_path / "other")
    path = other / "tokenizer.json"
    held = json.loads(path.read_text())
    vocab = held["model"]["vocab"]
    first, second = (next(text for text, number in vocab.items() if number == wanted) for wanted in (3000, 3001))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(held))
    with pytest.raises(UsageError, match=r"token 3000 of its tokenizer is another .* \(2 differ\)"):
        bitsmith.tune_qat(tiny, to="q4_0", teacher=other, out=tmp_path / "out.gguf", **QUICK)


@pytest.mark.parametrize("to", ["native/int3-g64", "q4_0", "native/nf4"])
def test_going_on_from_a_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str) -> None:
    """The codes of a file in place of a rounding: the same training, from the same codes, gives the same bytes."""
    words = {name: value for name, value in QUICK.items() if name not in TRAINING}
    first, whole, after = (tmp_path / f"{name}{'' if '/' in to else '.gguf'}" for name in ("first", "whole", "after"))
    bitsmith.quantize(tiny, to=to, method="gptq", out=first, **words)
    judged = count(1)
    monkeypatch.setattr(end_to_end, "_judge", lambda *words: 1.0 / next(judged))  # the last state wins
    for train in ("scales", "all"):
        bitsmith.tune_qat(tiny, to=to, train=train, out=whole, force=True, **QUICK)
        started = QUICK | {"method": None, "start": first, "force": True}
        made = bitsmith.tune_qat(tiny, to=to, train=train, out=after, **started)
        assert made.method == "the codes of first"
        assert not any("made from" in warning for warning in made.warnings)
        one, two = (open_checkpoint(path).source for path in (whole, after))
        assert all(np.array_equal(one.rows(name), two.rows(name)) for name in one.tensors)
    assert made.manifest is not None
    assert json.loads(made.manifest.recipe)["training"]["start"] == "first"


def test_a_file_that_does_not_fit(tiny: Path, tmp_path: Path) -> None:
    words = {name: value for name, value in QUICK.items() if name != "method"} | {"out": tmp_path / "out"}
    bitsmith.quantize(tiny, to="native/int3-g64", out=tmp_path / "first")
    other = make_folder(tmp_path / "other", tensors=weights(CONFIG, seed=5))
    cases: tuple[tuple[Path, str, dict[str, Any], str], ...] = (
        (tiny, "native/int4-g64", {}, "is in int3-g64, and would become int4-g64"),
        (tiny, "native/int3-g64", {"method": "gptq"}, "holds codes already"),
        (other, "native/int3-g64", {}, "it was made from another model than other"),
    )
    for model, to, further, said in cases:
        with pytest.raises(BitsmithError) as failed:
            bitsmith.tune_qat(model, to=to, start=tmp_path / "first", **words, **further)
        assert said in str(failed.value)
    with pytest.raises(BitsmithError, match=r"is in (bf16|f32), and would become"):
        bitsmith.tune_qat(tiny, to="native/int3-g64", start=tiny, **words)
