"""`bitsmith compare` from the command line and from Python, on a small model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import bitsmith
from bitsmith.comparison.expected import Expected
from bitsmith.comparison.ledger import usual_ledger
from bitsmith.comparison.result import Comparison
from bitsmith.comparison.tasks.items import Choice
from bitsmith.comparison.tasks.made import made_task
from bitsmith.comparison.texts import open_domains
from bitsmith.comparison.verdict import better_warnings
from bitsmith.evaluation.moments import Estimate
from bitsmith.evaluation.speed import Rate
from bitsmith.system.folders import cache_folder
from tests.cli.command import Command
from tests.tiny import make_folder

FAST = ("--context", 32, "--max-windows", 12, "--no-noise-floor", "--no-layers", "--generate", 0, "-q")


def compare(model: Path, *files: Path, **words: Any) -> Comparison:
    usual: dict[str, Any] = {"context": 32, "max_windows": 12, "noise_floor": False, "layers": False, "generate": 0}
    return bitsmith.compare(model, files, **{**usual, **words})


@pytest.fixture
def q4(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small-Q4_0.gguf"
    bitsmith.quantize(tiny, to="q4_0", out=path)
    return path


def test_a_table_of_made_and_given_files(bitsmith_command: Command, tiny: Path, q4: Path, prose: Path) -> None:
    done = bitsmith_command("compare", tiny, q4, "--to", "q8_0,gptq/int4", "--text", f"prose={prose}", *FAST, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["rows"][0]["name"] == "q8_0"
    assert found["texts"][0]["name"] == "prose"
    rows = {row["name"]: row for row in found["rows"]}
    assert set(rows) == {"q8_0", "gptq/int4", "small-Q4_0"}
    assert rows["q8_0"]["linear_bits"] == pytest.approx(8.5)
    assert rows["small-Q4_0"]["make_seconds"] is None
    assert rows["q8_0"]["make_seconds"] > 0


def test_figures_are_those_of_eval(tiny: Path, q4: Path, prose: Path) -> None:
    """Losses to all digits; KLD up to what 16 bits of the original's logits leave out."""
    row = compare(tiny, q4, text=prose).rows[0].summary
    single = bitsmith.evaluate(q4, against=tiny, text=prose, context=32, max_windows=12)
    assert single.divergence is not None
    assert row.tokens == single.tokens
    assert row.perplexity.value == pytest.approx(single.perplexity.value, rel=1e-12)
    assert row.quality.value == pytest.approx(1 / single.divergence.ratio.value, rel=1e-12)
    assert row.kld.value == pytest.approx(single.divergence.kld.value, abs=2e-7)
    assert row.kld_99 == pytest.approx(single.divergence.kld_99, abs=2e-6)
    assert row.top1.value == single.divergence.top1.value


def test_int8_rounds_the_candidates_alone(tiny: Path, q4: Path, prose: Path) -> None:
    """As `bitsmith eval --against` does: the original runs exact."""
    found = compare(tiny, q4, text=prose, kernel="int8", max_windows=4)
    single = bitsmith.evaluate(q4, against=tiny, text=prose, context=32, max_windows=4, kernel="int8")
    exact = compare(tiny, q4, text=prose, max_windows=4)
    assert single.divergence is not None
    assert found.rows[0].summary.kld.value == pytest.approx(single.divergence.kld.value, abs=2e-7)
    assert found.original.summary.perplexity.value == exact.original.summary.perplexity.value
    assert found.rows[0].summary.kld.value != exact.rows[0].summary.kld.value
    assert found.conditions.kernel == "int8 (the original: exact)"


def test_a_repeat_runs_no_model(tiny: Path, q4: Path, prose: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(tiny, q4, text=prose, to="q8_0")
    monkeypatch.setattr("bitsmith.comparison.loading.load", None)
    monkeypatch.setattr("bitsmith.comparison.candidates.quantize_each", None)
    plans: list[list[str]] = []
    again = bitsmith.compare(
        tiny,
        q4,
        to="q8_0",
        text=prose,
        context=32,
        max_windows=12,
        noise_floor=False,
        layers=False,
        generate=0,
        on_plan=lambda plan: plans.append(plan.lines()),
    )
    assert plans == [["all 2 candidates are measured already"]]
    assert [row.summary for row in again.rows] == [row.summary for row in first.rows]


def test_what_is_missing_is_measured_alone(tiny: Path, q4: Path, prose: Path) -> None:
    """A killed run: the ledger has some, and the original's predictions lie on the disk."""
    compare(tiny, q4, text=prose)
    passes: list[int] = []
    bitsmith.compare(
        tiny,
        q4,
        to="q8_0",
        text=prose,
        context=32,
        max_windows=12,
        noise_floor=False,
        layers=False,
        generate=0,
        on_plan=lambda plan: passes.append(plan.passes),
    )
    assert passes == [12]
    for path in (cache_folder() / "compare" / "logits").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert compare(tiny, q4, text=prose, to="q8_0,q5_0").failures == ()


def test_the_plan_counts_questions_texts_and_the_rest(tiny: Path, q4: Path, prose: Path, tmp_path: Path) -> None:
    """Beforehand: what is asked and written, and the time of it. Behind it, nothing is left."""
    sums = tmp_path / "sums.jsonl"
    sums.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    plans: list[Expected] = []
    words: dict[str, Any] = {"text": prose, "context": 32, "max_windows": 2, "on_plan": plans.append}
    words |= {"to": "q8_0", "tasks": f"made,{sums}", "generate": 2, "prompt": ["The", "A"], "noise_floor": False}
    bitsmith.compare(tiny, q4, **words)
    lines = "\n".join(plans[0].lines())
    items = made_task(open_domains([prose])[0]).items
    assert f"to ask: {3 * (len(items) + 1)} questions (about " in lines
    assert "to write: 6 texts (about " in lines
    assert 0 < plans[0].more_seconds < 1  # the errors of matrices
    assert "in all about " in lines
    assert (plans[0].todo.answer_steps, plans[0].todo.text_steps) == (3 * 64, 3 * 2)
    model = bitsmith.load(tiny)
    prompts = [each.prompt for each in items if isinstance(each, Choice)]
    read = sum(len(model.tokenizer.encode(each, add_special=False)) for each in prompts)
    assert 3 * read < plans[0].todo.tokens < 3 * 3 * read
    assert plans[0].seconds > plans[0].make_seconds + plans[0].measure_seconds
    bitsmith.compare(tiny, q4, **words)
    assert plans[1].lines() == ["all 2 candidates are measured already"]


def test_speed_stands_in_the_table_and_is_measured_anew(
    bitsmith_command: Command, tiny: Path, q4: Path, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    words = ("compare", tiny, q4, "--text", prose, *FAST)
    done = bitsmith_command(*words, "--speed", "-o", table)
    assert done.code == 0, done.err
    heading = next(line for line in done.out.splitlines() if line.startswith("candidate"))
    assert heading.endswith("prompt t/s gen. t/s") or heading.split()[-4:] == ["prompt", "t/s", "gen.", "t/s"]
    found = compare(tiny, q4, text=prose, speed=True)
    for each in (found.original, *found.rows):
        assert each.speeds is not None
        assert each.speeds.prompt.value > 0
        assert each.speeds.generation.value > 0
        assert each.speeds.generation.error >= 0
    column = table.read_text().splitlines()[0].split(",").index("generation_tokens_per_second")
    assert float(table.read_text().splitlines()[1].split(",")[column]) > 0
    monkeypatch.setattr(
        "bitsmith.evaluation.speed.measure_speed", lambda *_, **__: (Rate(64, (2.0,)), Rate(32, (4.0,)))
    )
    again = compare(tiny, q4, text=prose, speed=True).rows[0].speeds
    assert again is not None
    assert (again.prompt.value, again.generation.value) == (32.0, 8.0)
    assert "speed" in bitsmith_command("results", "--kind", "speed").out
    assert compare(tiny, q4, text=prose).rows[0].speeds is None


def test_a_corrupt_file_is_named_and_the_others_go_on(
    bitsmith_command: Command, tiny: Path, q4: Path, prose: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(q4.read_bytes()[:5000])
    folder = tmp_path / "nothing"
    folder.mkdir()
    done = bitsmith_command("compare", tiny, broken, q4, folder, "--text", prose, *FAST)
    assert done.code == 1
    assert "broken.gguf is left out: " in done.err
    assert "nothing is left out: " in done.err
    assert "small-Q4_0" in done.out


def test_weights_that_are_not_finite_are_named(tiny: Path, q4: Path, prose: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"] * np.float32("nan")
    made = make_folder(tmp_path / "nan", tensors={name: np.asarray(each) for name, each in tensors.items()})
    found = compare(tiny, made, q4, text=prose)
    assert [row.name for row in found.rows] == ["small-Q4_0"]
    assert "must be finite" in found.failures[0].reason


def test_another_vocabulary_is_refused_by_name(tiny: Path, q4: Path, prose: Path, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "stranger")
    file = folder / "tokenizer.json"
    words = json.loads(file.read_text())
    merges = words["model"]["merges"]
    words["model"]["merges"] = merges[: len(merges) // 2]
    file.write_text(json.dumps(words))
    found = compare(tiny, folder, q4, text=prose)
    assert [row.name for row in found.rows] == ["small-Q4_0"]
    assert found.failures[0].name == str(folder)
    assert "their tokenizers read prose differently" in found.failures[0].reason


def test_a_short_text_and_an_empty_call_are_errors(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    assert "one window needs 32" in bitsmith_command.fails(1, "compare", tiny, "--to", "q8_0", "--text", short, *FAST)
    assert "nothing to compare" in bitsmith_command.fails(2, "compare", tiny)
    assert "unknown container" in bitsmith_command.fails(2, "compare", tiny, "--to", "q8_0,zip/int4", *FAST)
    assert "unknown GGUF mix 'q9_z'" in bitsmith_command.fails(2, "compare", tiny, "--to", "q8_0,q9_z", *FAST)
    assert "no scheme 'int99'" in bitsmith_command.fails(2, "compare", tiny, "--to", "gptq/int99", *FAST)
    method = ("compare", tiny, "--to", "q8_0", "--method", "nope")
    assert "--method nope: unknown" in bitsmith_command.fails(2, *method, *FAST)
    assert "ends in .html" in bitsmith_command.fails(2, "compare", tiny, "--to", "q8_0", "-o", "report.pdf", *FAST)


def test_the_same_file_twice_is_a_tie(tiny: Path, q4: Path, prose: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin.gguf"
    shutil.copy(q4, twin)
    found = compare(tiny, q4, twin, text=prose)
    assert found.rows[0].ties == (found.rows[1].name,)
    assert found.rows[0].summary == found.rows[1].summary
    assert any("the same file" in note for note in found.notes)


def test_planted_damage_is_ranked_last(tiny: Path, q4: Path, prose: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = np.roll(tensors[name], 1, axis=0)
    damaged = make_folder(tmp_path / "damaged", tensors=tensors)
    found = compare(tiny, damaged, q4, text=prose, to="q8_0")
    assert [row.name for row in found.rows] == ["q8_0", "small-Q4_0", "damaged"]
    assert not found.rows[2].front
    assert found.rows[2].ties == ()
    assert "q8_0" in found.verdict


def test_texts_have_figures_of_their_own(tiny: Path, q4: Path, prose: Path, other: Path) -> None:
    found = compare(tiny, q4, text=[f"prose={prose}", f"code={other}"])
    row = found.rows[0]
    assert list(row.domains) == ["prose", "code"]
    assert found.tokens == row.summary.tokens == sum(each.tokens for each in row.domains.values())
    mean = np.average(
        [each.kld.value for each in row.domains.values()], weights=[each.tokens for each in row.domains.values()]
    )
    assert row.summary.kld.value == pytest.approx(float(mean))
    alone = bitsmith.evaluate(q4, against=tiny, text=other, context=32, max_windows=12)
    assert alone.divergence is not None
    assert row.domains["code"].kld.value == pytest.approx(alone.divergence.kld.value, abs=2e-7)


def test_errors_over_few_documents_are_warned_about(tiny: Path, q4: Path, prose: Path) -> None:
    few = compare(tiny, q4, text=prose, max_windows=3)
    many = compare(tiny, q4, text=prose, max_windows=24)
    assert any("are over 3 windows only" in each for each in few.warnings)
    assert not any("windows only" in each for each in many.warnings)
    assert "surely" not in few.verdict
    assert "too few documents to be sure" in few.verdict
    assert "surely" in many.verdict


def test_a_gain_that_is_rounding_is_no_warning(tiny: Path, q4: Path, prose: Path) -> None:
    (row,) = compare(tiny, q4, text=prose, max_windows=3).rows
    better = replace(row.summary, quality=Estimate(1.01, 0.001), kld=Estimate(0.1, 0.001))
    assert len(better_warnings([replace(row, summary=better)])) == 1
    assert better_warnings([replace(row, summary=better, at_floor=True)]) == ()
    assert better_warnings([replace(row, summary=replace(better, kld=Estimate(1e-7, 1e-8)))]) == ()


def test_names_of_texts_must_differ(bitsmith_command: Command, tiny: Path, prose: Path) -> None:
    words = ("compare", tiny, "--to", "q8_0", "--text", prose, "--text", f"prose={prose}", *FAST)
    assert "two texts called prose" in bitsmith_command.fails(2, *words)


def test_records_and_files(bitsmith_command: Command, tiny: Path, q4: Path, prose: Path, tmp_path: Path) -> None:
    table, plain = tmp_path / "table.csv", tmp_path / "all.json"
    words = ("compare", tiny, q4, "--text", prose, "-o", table, "-o", plain, *FAST)
    assert bitsmith_command(*words).code == 0
    lines = table.read_text().splitlines()
    assert lines[0].startswith("name,path,sha256,container")
    assert len(lines) == 3
    assert json.loads(plain.read_text())["rows"][0]["name"] == "small-Q4_0"
    assert "exists" in bitsmith_command.fails(2, *words)


def test_results_lists_and_exports(
    bitsmith_command: Command, tiny: Path, q4: Path, prose: Path, tmp_path: Path
) -> None:
    assert "nothing is kept" in bitsmith_command("results").out
    compare(tiny, q4, text=prose)
    assert usual_ledger().is_file()
    listed = bitsmith_command("results")
    assert "small-Q4_0" in listed.out
    assert "prose" in listed.out
    chosen = json.loads(bitsmith_command("results", "--model", "q4_0", "--kind", "scores", "--json").out)
    assert [each["model"] for each in chosen] == ["small-Q4_0"]
    assert "nothing is kept" in bitsmith_command("results", "--kind", "layers").out
    assert "generations" in bitsmith_command.fails(2, "results", "--kind", "score")
    out = tmp_path / "kept.csv"
    assert bitsmith_command("results", "--csv", out).code == 0
    assert len(out.read_text().splitlines()) == 3
    assert "no such ledger" in bitsmith_command.fails(1, "results", "--ledger", tmp_path / "none")


def test_a_word_for_a_notebook(tiny: Path, q4: Path, prose: Path) -> None:
    found = compare(tiny, q4, text=prose)
    assert repr(found).startswith("<Comparison of 'tiny': 1 candidates")
    assert "small-Q4_0" in found._repr_html_()
    assert found.records()[1]["name"] == "small-Q4_0"


def test_an_interrupt_keeps_what_is_measured(
    bitsmith_command: Command, tiny: Path, q4: Path, prose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during the second candidate: the first is not measured again."""
    from bitsmith.comparison import scoring

    whole, seen = scoring.score, []

    def stopped(model: Any, *words: Any, **named: Any) -> Any:
        seen.append(model.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return whole(model, *words, **named)

    monkeypatch.setattr(scoring, "score", stopped)
    words = ("compare", tiny, q4, "--to", "q8_0", "--text", prose, *FAST)
    done = bitsmith_command(*words)
    assert done.code == 130
    assert "1 candidate measured and kept" in done.err
    assert "Traceback" not in done.err
    assert bitsmith_command(*words).code == 0
    assert len(seen) == 3
    assert seen[2] == seen[1] != seen[0]


def test_two_runs_at_once_share_a_ledger(tiny: Path, q4: Path, prose: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda to: compare(tiny, q4, text=prose, to=to), ("q8_0", "q5_0"))
    assert first.failures == second.failures == ()
    rows = {row.name: row.summary for row in (*first.rows, *second.rows)}
    assert set(rows) == {"small-Q4_0", "q8_0", "q5_0"}


def test_one_bad_format_leaves_the_others_with_a_calibration(tiny: Path, prose: Path, other: Path) -> None:
    found = compare(tiny, text=prose, to="mmproj,q4_0,q8_0", calibration=other)
    assert {row.name for row in found.rows} == {"q4_0", "q8_0"}
    (failed,) = found.failures
    assert failed.name == "mmproj"
    assert "mmproj" in failed.reason


def test_a_format_that_is_named_twice_is_made_once(tiny: Path, q4: Path, prose: Path, tmp_path: Path) -> None:
    twin = tmp_path / "q8_0.gguf"
    shutil.copy(q4, twin)
    found = compare(tiny, twin, text=prose, to=["Q8_0,q8_0", "gguf/q8_0"])
    assert {row.name for row in found.rows} == {"gguf/q8_0", str(twin)}


def test_the_noise_floor_has_a_kind_of_its_own(bitsmith_command: Command, tiny: Path, q4: Path, prose: Path) -> None:
    pytest.importorskip("torch")
    compare(tiny, q4, text=prose, noise_floor=True)
    listed = json.loads(bitsmith_command("results", "--kind", "floor", "--json").out)
    assert listed
    assert all(each["kld"] >= 0 and each["tokens"] > 0 for each in listed)
    scores = json.loads(bitsmith_command("results", "--kind", "scores", "--json").out)
    assert all("kld" in each for each in scores)
