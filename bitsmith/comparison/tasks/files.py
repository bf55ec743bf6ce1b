"""Reads tasks from local files: MMLU's own CSV layout, and JSON lines in three shapes.

CSV (Hendrycks et al. 2021): question, four choices, the letter of the right one; without a heading. The subject is the
file's name without "_test", "_val" or "_dev", as in MMLU's archive.
JSON lines: {"question", "choices", "answer"} is asked as MMLU; {"context" or "ctx", "endings", "label"} compares the
endings themselves (as HellaSwag); {"prompt", "answer"} is answered in the model's own words.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitsmith.comparison.tasks.items import LETTERS, Choice, Task, Written, lettered
from bitsmith.errors import FileError
from bitsmith.texts.entries import json_lines

_PART = re.compile(r"_(test|val|dev)$")
_MOST_CHOICES = len(LETTERS)


def read_task(path: Path, name: str | None = None) -> Task:
    """The task of a file. Raises FileError, with the line, for what is not as expected."""
    if not path.is_file():
        raise FileError(f"--tasks: {path}: there is no such file.")
    items = tuple(_csv(path) if path.suffix.lower() == ".csv" else _records(path))
    if not items:
        raise FileError(f"{path}: the file has no questions.")
    return Task(name or _PART.sub("", path.stem), items)


def _csv(path: Path) -> Iterator[Choice]:
    subject = _PART.sub("", path.stem).replace("_", " ")
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
                yield lettered(row[0], row[1:5], LETTERS.index(letter), subject)
    except csv.Error as error:
        raise FileError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: the file must be UTF-8 ({error.reason}); convert it.") from error


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
        return lettered(_text(record, "question", where), choices, _answer(record.get("answer"), choices, where))
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


def _answer(value: Any, choices: tuple[str, ...], where: str) -> int:
    """The number of the right choice, from a number, its digits, a letter, or the choice itself."""
    if isinstance(value, bool):
        value = None
    if isinstance(value, str):
        word = value.strip()
        if word.isdecimal():
            value = int(word)
        elif word.upper() in tuple(LETTERS[: len(choices)]):
            value = LETTERS.index(word.upper())
        elif word in choices:
            value = choices.index(word)
    if not isinstance(value, int) or not 0 <= value < len(choices):
        raise FileError(
            f"{where}: the answer must be a number from 0 to {len(choices) - 1}, a letter or a choice; found "
            f"{value!r:.40}."
        )
    return value
