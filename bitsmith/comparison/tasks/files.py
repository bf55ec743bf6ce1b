"""Reads tasks from local files: MMLU's own CSV layout, and JSON lines in three shapes.

CSV (Hendrycks et al. 2021): question, four choices, the letter of the right one; without a heading. The subject is the
file's name without "_test", "_val" or "_dev", as in MMLU's archive; examples stand in SUBJECT_dev.
JSON lines: {"question", "choices", "answer"} is asked as MMLU; {"context" or "ctx", "endings", "label"} compares the
endings themselves (as HellaSwag); {"prompt", "answer"} is answered in the model's own words.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitsmith.comparison.tasks.items import LETTERS, Choice, Task, Written, led, lettered
from bitsmith.errors import FileError
from bitsmith.texts.entries import json_lines

_PART = re.compile(r"_(test|val|dev)$")
_MOST_CHOICES = len(LETTERS)


def read_task(path: Path, name: str | None = None, *, shots: int = 0) -> Task:
    """The task of a file, or of a folder with MMLU's files.

    shots: number of examples before each question: the first ones of SUBJECT_dev beside the file, or in ../dev
    Raises FileError, with the line, for what is not as expected, and where there are no such examples.
    """
    if path.is_dir():
        files = _tests(path)
        items = [item for file in files for item in _items(file, shots)]
        return Task(name or path.resolve().name, tuple(items))
    if not path.is_file():
        raise FileError(f"--tasks: {path}: there is no such file.")
    return Task(name or _PART.sub("", path.stem), tuple(_items(path, shots)))


def _tests(folder: Path) -> list[Path]:
    """The files of questions of MMLU's folder: in `test`, or beside each other."""
    found = sorted(folder.glob("test/*_test.csv")) or sorted(folder.glob("*_test.csv"))
    if not found:
        raise FileError(f"--tasks: {folder}: expected MMLU's files, test/SUBJECT_test.csv; there are none.")
    return found


def _items(path: Path, shots: int) -> list[Choice | Written]:
    """The questions of a file as they are asked."""
    subject = _PART.sub("", path.stem).replace("_", " ") if _is_csv(path) else ""
    items, examples = _read(path), _examples(path, shots)
    if shots and not all(isinstance(item, Choice) for item in items):
        raise FileError(f"{path}: examples (--shots) go before questions with choices; this file asks others too.")
    return [led(item, subject, examples) if isinstance(item, Choice) else item for item in items]


def _read(path: Path) -> list[Choice | Written]:
    items = list(_csv(path) if _is_csv(path) else _records(path))
    if not items:
        raise FileError(f"{path}: the file has no questions.")
    return items


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def _examples(path: Path, shots: int) -> list[Choice]:
    if not shots:
        return []
    name = f"{_PART.sub('', path.stem)}_dev{path.suffix}"
    places = [path.with_name(name), path.resolve().parent.parent / "dev" / name]
    file = next((place for place in places if place.is_file() and place.resolve() != path.resolve()), None)
    if file is None:
        raise FileError(f"{path}: --shots needs examples, and there is neither {places[0]} nor {places[1]}.")
    found = [item for item in _read(file) if isinstance(item, Choice)]
    if len(found) < shots:
        raise FileError(f"{file}: --shots={shots} needs as many examples with choices; the file has {len(found)}.")
    return found[:shots]


def _csv(path: Path) -> Iterator[Choice]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if len(row) != 6:
                    raise FileError(f"{where}: expected question, four choices and a letter; found {len(row)} fields.")
                letter = row[5].strip().upper()
                if letter not in tuple("ABCD"):
                    raise FileError(f"{where}: the answer must be A, B, C or D; found {row[5]!r:.40}.")
                yield lettered(row[0], row[1:5], LETTERS.index(letter))
    except csv.Error as error:
        raise FileError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: the file must be UTF-8 ({error.reason}); convert it.") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error


def _records(path: Path) -> Iterator[Choice | Written]:
    for entry in json_lines(path):
        record = entry.record
        if not isinstance(record, Mapping):
            raise FileError(f"{entry.where}: expected an object with a question; found {type(record).__name__}.")
        yield _item(record, entry.where)


def _item(record: Mapping[str, Any], where: str) -> Choice | Written:
    context = record.get("context", record.get("ctx"))
    if "question" in record and "choices" in record:
        choices = _texts(record["choices"], "choices", where)
        answer = _answer(record.get("answer"), choices, where, letters=True)
        return lettered(_text(record, "question", where), choices, answer)
    if context is not None and "endings" in record:
        endings = _texts(record["endings"], "endings", where)
        prompt = _text({"context": context}, "context", where)
        answer = _answer(record.get("label"), endings, where)
        return Choice(prompt, tuple(f" {ending.lstrip()}" for ending in endings), answer)
    if "prompt" in record and "answer" in record:
        return Written(_text(record, "prompt", where), _text(record, "answer", where))
    raise FileError(
        f"{where}: expected question, choices and answer; context, endings and label; or prompt and answer; found "
        f"{', '.join(map(str, record)) or 'nothing'}."
    )


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value.strip():
        raise FileError(f"{where}: {key} must be a text; found {value!r:.60}.")
    return value


def _texts(value: Any, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not 2 <= len(value) <= _MOST_CHOICES:
        raise FileError(f"{where}: {key} must be a list of 2 to {_MOST_CHOICES} texts.")
    if not all(isinstance(each, str) and each.strip() for each in value):
        raise FileError(f"{where}: {key} must hold texts, none of them empty.")
    return tuple(value)


def _answer(value: Any, choices: tuple[str, ...], where: str, *, letters: bool = False) -> int:
    """The number of the right choice, from a number, its digits, a letter, or the choice itself.

    letters: whether the choices are asked by letters: then A to J in capitals are always letters, as in MMLU
    Raises FileError for a text that can be read in two ways, and for what is no answer.
    """
    if isinstance(value, bool):
        value = None
    if isinstance(value, str):
        value = _number(value.strip(), choices, where, letters) if value.strip() else value
    if not isinstance(value, int) or not 0 <= value < len(choices):
        raise FileError(
            f"{where}: the answer must be a number from 0 to {len(choices) - 1}, a letter or a choice; found "
            f"{value!r:.40}."
        )
    return value


def _number(word: str, choices: tuple[str, ...], where: str, letters: bool) -> int | str:
    """The number that a text of an answer means; the text itself if it means none."""
    place: int | None = None
    if word.isdecimal():
        place = int(word) if int(word) < len(choices) else None
    elif word.upper() in tuple(LETTERS[: len(choices)]):
        place = LETTERS.index(word.upper())
        if letters and word.isupper():
            return place
    texts = [choice.strip() for choice in choices]
    if word not in texts:
        return word if place is None else place
    found = texts.index(word)
    if place is not None and place != found:
        raise FileError(
            f"{where}: the answer {word!r} can be read in two ways: as the choice with this text (number {found}), and "
            f"as number {place}; give the number without quotation marks."
        )
    return found
