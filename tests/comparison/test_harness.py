"""lm-eval runs through bitsmith, and gives what the built-in scorer gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.comparison.tasks.answering import right_answers
from bitsmith.comparison.tasks.files import read_task
from bitsmith.comparison.tasks.harness import harness_model, rolling, score_of
from bitsmith.comparison.tasks.items import Choice

QUESTIONS = [
    ("What is returned by a call?", ["a value", "a colour", "a song", "a river"], 0),
    ("Which word names a loop?", ["blue", "for", "seven", "under"], 1),
    ("What does import do?", ["sleeps", "sings", "loads a module", "paints"], 2),
    ("What holds pairs of keys and values?", ["a cup", "a door", "a tree", "a dictionary"], 3),
    ("Which is an integer?", ["7", "x.y", "'a'", "None"], 0),
    ("What raises an error?", ["return", "raise", "pass", "else"], 1),
]
EXAMPLES = [
    ("Which word ends a function?", ["return", "tree", "under", "nine"], 0),
    ("What is a list?", ["a river", "a sequence", "a song", "a cup"], 1),
    ("What does `del` do?", ["removes a name", "paints", "sings", "adds"], 0),
    ("Never asked?", ["a", "b", "c", "d"], 3),
]


def write_csv(path: Path, questions: list[tuple[str, list[str], int]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([question, *choices, "ABCD"[answer]] for question, choices, answer in questions)


@pytest.mark.parametrize("shots", [0, 3])
def test_lm_eval_equals_the_built_in_scorer(tmp_path: Path, shots: int) -> None:
    """The prompt and the scoring of lm-eval's `mmlu`, without examples and with the first ones of `dev`."""
    lm_eval = pytest.importorskip("lm_eval")
    tasks = pytest.importorskip("lm_eval.tasks")
    files = {"test": QUESTIONS, "dev": EXAMPLES}
    for part, questions in files.items():
        (tmp_path / part).mkdir()
        lines = [{"question": each[0], "choices": each[1], "answer": each[2]} for each in questions]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_csv(tmp_path / part / f"python_words_{part}.csv", questions)
    text = "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
    task = {
        "task": "local_mmlu",
        "description": "The following are multiple choice questions (with answers) about python words.\n\n",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {part: str(tmp_path / f"{part}.jsonl") for part in files}},
        "test_split": "test",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "doc_to_text": text,
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    model = bitsmith.load("reference", kernel="exact")
    found = lm_eval.simple_evaluate(
        model=harness_model(model),
        tasks=[task],
        task_manager=tasks.TaskManager(),
        num_fewshot=shots,
        bootstrap_iters=0,
    )
    built_in = read_task(tmp_path / "test" / "python_words_test.csv", shots=shots)
    ours = right_answers(model, built_in)
    samples = sorted(found["samples"]["local_mmlu"], key=lambda each: each["doc_id"])
    for sample, item in zip(samples, built_in.items, strict=True):
        assert isinstance(item, Choice)
        assert [tuple(pair) for pair in _arguments(sample)] == [(item.prompt, each) for each in item.continuations]
    assert [bool(each["acc"]) for each in samples] == ours.tolist()
    assert score_of("local_mmlu", found["results"]["local_mmlu"], found).value == pytest.approx(ours.mean())


def _arguments(sample: dict[str, Any]) -> list[list[str]]:
    """Context and continuation of each request of a sample."""
    found = sample["arguments"]
    each = found.values() if isinstance(found, dict) else found
    return [list(pair.values()) if isinstance(pair, dict) else list(pair) for pair in each]


def test_a_rolling_likelihood_is_that_of_all_tokens() -> None:
    model = bitsmith.load("reference", kernel="exact")
    text = "The while statement is used for repeated execution as long as an expression is true. " * 40
    whole = rolling(model, text)
    assert whole < 0
    assert rolling(model, text[: len(text) // 2]) > whole


def test_without_lm_eval_a_name_is_an_error(bitsmith_command, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("bitsmith.comparison.tasks.harness.find_spec", lambda name: None)
    words = ("compare", tiny, "--to", "q8_0", "-c", 32, "--max-windows", 2, "--tasks", "hellaswag")
    assert "pip install 'bitsmith[tasks]'" in bitsmith_command.fails(2, *words)


def test_a_metric_that_is_not_known_is_an_error() -> None:
    with pytest.raises(bitsmith.BitsmithError, match="neither"):
        score_of("odd", {"bleu,none": 1.0}, {})
