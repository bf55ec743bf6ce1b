"""Tasks: what files hold, what is made of texts, and answers that equal a direct loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.comparison.tasks.answering import Pair, encode_pair, likelihoods, right_answers
from bitsmith.comparison.tasks.files import read_task
from bitsmith.comparison.tasks.items import Choice, Task, Written
from bitsmith.comparison.tasks.made import made_task
from bitsmith.comparison.tasks.naming import open_tasks
from bitsmith.comparison.tasks.scores import task_score
from bitsmith.comparison.texts import open_domains
from bitsmith.errors import FileError
from bitsmith.runtime.language_model import LanguageModel
from tests.cli.command import Command

CSV = '"Which is a number?",one,table,green,slowly,A\n"Two, and\ntwo?",3,4,5,6,B\n'


@pytest.fixture
def model(tiny: Path) -> LanguageModel:
    return bitsmith.load(tiny, kernel="exact")


def test_mmlus_layout(tmp_path: Path) -> None:
    path = tmp_path / "high_school_physics_test.csv"
    path.write_text(CSV)
    task = read_task(path)
    assert task.name == "high_school_physics"
    assert task.items[0] == Choice(
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Which is a number?\nA. one\nB. table\nC. green\nD. slowly\nAnswer:",
        (" A", " B", " C", " D"),
        0,
    )
    assert [item.answer for item in task.items] == [0, 1]


def mmlu(folder: Path) -> Path:
    """MMLU's archive with two subjects."""
    for part, count in (("dev", 2), ("test", 3)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for subject in ("anatomy", "world_history"):
            lines = [f"{part} {subject} {number}?,one,two,three,four,{'ABCD'[number]}\n" for number in range(count)]
            (folder / part / f"{subject}_{part}.csv").write_text("".join(lines))
    return folder


def test_examples_stand_before_a_question(tmp_path: Path) -> None:
    file = mmlu(tmp_path / "data") / "test" / "world_history_test.csv"
    asked = read_task(file, shots=1).items[1]
    assert isinstance(asked, Choice)
    choices = "A. one\nB. two\nC. three\nD. four\nAnswer:"
    assert asked.prompt == (
        "The following are multiple choice questions (with answers) about world history.\n\n"
        f"dev world_history 0?\n{choices} A\n\n"
        f"test world_history 1?\n{choices}"
    )
    assert asked.answer == 1
    assert read_task(file, shots=2).sha256 != read_task(file).sha256
    with pytest.raises(FileError, match="shots=3 needs as many examples with choices; the file has 2"):
        read_task(file, shots=3)
    alone = tmp_path / "alone_test.csv"
    alone.write_text(CSV)
    with pytest.raises(FileError, match=r"there is neither .*alone_dev\.csv nor .*dev/alone_dev\.csv"):
        read_task(alone, shots=1)
    written = tmp_path / "sums.jsonl"
    written.write_text('{"prompt": "1 + 1 =", "answer": "2"}\n')
    (tmp_path / "sums_dev.jsonl").write_text('{"question": "Q?", "choices": ["x", "y"], "answer": 0}\n')
    with pytest.raises(FileError, match="this file asks others too"):
        read_task(written, shots=1)


def test_mmlus_folder_is_one_task(tmp_path: Path) -> None:
    folder = mmlu(tmp_path / "data")
    tasks, others = open_tasks([str(folder), f"mine={folder}", "mmlu"], open_domains([]), shots=2)
    assert [task.name for task in tasks] == ["data", "mine"]
    assert others == ["mmlu"]
    assert len(tasks[0].items) == 6
    assert "about anatomy." in tasks[0].items[0].prompt
    with pytest.raises(FileError, match="there are none"):
        read_task(tmp_path)


def test_json_lines_in_three_shapes(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        '{"question": "Q?", "choices": ["x", "y", "z"], "answer": "C"}\n\n'
        '{"ctx": "It rains, so", "endings": ["he is wet.", "he sings."], "label": "0"}\n'
        '{"prompt": "1 + 1 =", "answer": "2"}\n'
    )
    asked, ended, written = read_task(path, "mine").items
    assert asked == Choice("Q?\nA. x\nB. y\nC. z\nAnswer:", (" A", " B", " C"), 2)
    assert ended == Choice("It rains, so", (" he is wet.", " he sings."), 0)
    assert written == Written("1 + 1 =", "2")
    assert read_task(path, "mine").sha256 == read_task(path, "other").sha256


@pytest.mark.parametrize(
    ("choices", "answer", "number"),
    [
        ('["4", "5", "6"]', '"5"', 1),
        ('["3", "0", "1", "2"]', "2", 2),
        ('["0", "1", "2"]', '"1"', 1),
        ('["x", "y", "z"]', '"2"', 2),
        ('["x", "b", "z"]', '"b"', 1),
        ('["D", "C", "B", "A"]', '"D"', 3),
    ],
)
def test_an_answer_is_a_text_first(tmp_path: Path, choices: str, answer: str, number: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"question": "x", "choices": {choices}, "answer": {answer}}}')
    (item,) = read_task(path).items
    assert isinstance(item, Choice)
    assert item.answer == number


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"question": "x", "choices": ["3", "0", "1", "2"], "answer": "2"}', "line 1: the answer '2' can"),
        ("a.jsonl", '{"context": "x", "endings": ["B", "A"], "label": "A"}', "line 1: the answer 'A' can be read in"),
        ("a.csv", CSV + "x,1,2,3,B\n", "line 4: expected question, four choices and a letter; found 5 fields"),
        ("a.csv", CSV + "x,1,2,3,4,E\n", "line 4: the answer must be A, B, C or D; found 'E'"),
        ("a.jsonl", '{"prompt": "x", "answer": "y"}\n{"prompt": ', "line 2: not JSON"),
        ("a.jsonl", '{"question": "x", "choices": ["y"], "answer": 0}', "line 1: choices must be a list of 2 to 10"),
        (
            "a.jsonl",
            '{"question": "x", "choices": ["y", "z"], "answer": 2}',
            "line 1: the answer must be a number from 0",
        ),
        ("a.jsonl", '{"question": "x", "choices": ["y", "z"], "answer": true}', "line 1: the answer must be"),
        ("a.jsonl", '{"q": "x"}', "line 1: expected question, choices and answer"),
        ("a.jsonl", '["x"]\n', "expected an object|expected question"),
        ("a.jsonl", '{"prompt": "", "answer": "y"}', "line 1: prompt must be a text"),
        ("a.jsonl", "\n", "no questions"),
    ],
)
def test_broken_lines_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(FileError, match=message):
        read_task(path)


def test_made_questions_are_of_the_text_and_always_the_same(prose: Path) -> None:
    (domain,) = open_domains([prose])
    task = made_task(domain, questions=12)
    assert task == made_task(domain, questions=12)
    assert len(task.items) == 12
    whole = prose.read_text()
    answers = set()
    for item in task.items:
        assert isinstance(item, Choice)
        assert len(item.continuations) == len(set(item.continuations)) == 4
        true = [each for each in item.continuations if item.prompt + each in whole]
        assert true == [item.continuations[item.answer]]
        answers.add(item.answer)
    assert len(answers) > 1


def test_likelihoods_equal_a_loop_over_tokens(model: LanguageModel) -> None:
    texts = ["The", "The language reference", "def f(x): return", "A longer beginning of a sentence that goes on"]
    pairs = [encode_pair(model, text, ending) for text in texts for ending in (" one", " of the whole", " (x)")]
    found = likelihoods(model, pairs)
    for pair, each in zip(pairs, found, strict=True):
        total, greedy = 0.0, True
        ids = list(pair.context)
        for token in pair.continuation:
            logits = model.logits(np.array([ids]), first=len(ids) - 1)[0, 0].astype(np.float64)
            total += logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            greedy = greedy and int(logits.argmax()) == token
            ids.append(token)
        assert each.total == pytest.approx(total, abs=1e-4)
        assert each.greedy == greedy


def test_a_context_that_is_too_long_loses_its_beginning(model: LanguageModel) -> None:
    most = model.config.context
    ids = tuple(int(each) for each in np.random.default_rng(0).integers(0, 4000, most + 30))
    long, cut = likelihoods(model, [Pair(ids, (7, 9)), Pair(ids[-most + 1 :], (7, 9))])
    assert long.total == pytest.approx(cut.total, abs=1e-4)


def test_spaces_at_the_end_of_a_context_go_to_the_continuation(model: LanguageModel) -> None:
    assert encode_pair(model, "The word ", "is") == encode_pair(model, "The word", " is")


def test_answers_and_scores(model: LanguageModel) -> None:
    text = model.generate("The language reference", max_tokens=64, temperature=0.0)
    first = text.strip().split("\n")[0].strip()
    task = Task("mine", (Written("The language reference", first), Written("The language reference", f"{first}?")))
    assert right_answers(model, task).tolist() == [True, False]
    score = task_score("mine", np.array([True, False, True]), np.array([True, True, False]))
    assert (score.value, score.count, score.lost, score.won) == (2 / 3, 3, 1, 1)
    assert score.low < 2 / 3 < score.high


def test_tasks_stand_in_the_table(bitsmith_command: Command, tiny: Path, prose: Path, tmp_path: Path) -> None:
    path = tmp_path / "sums_test.csv"
    path.write_text(CSV)
    words = ("compare", tiny, "--to", "q8_0", "--text", prose, "-c", 32, "--max-windows", 2, "--no-noise-floor", "-q")
    done = bitsmith_command(*words, "--tasks", f"made,{path}", "--generate", 4)
    assert done.code == 0, done.err
    heading = next(line for line in done.out.splitlines() if line.startswith("candidate"))
    assert heading.split()[-2:] == ["continuation", "sums"]
    assert "unknown" not in done.out
    assert "no such file" in bitsmith_command.fails(1, *words, "--tasks", tmp_path / "none.csv")
    assert "two tasks called sums" in bitsmith_command.fails(2, *words, "--tasks", f"{path},sums={path}")
