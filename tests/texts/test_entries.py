"""Records come one by one out of JSON lines, JSON arrays and parquet files; errors name the line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bitsmith.errors import FileError, UsageError
from bitsmith.texts import entries
from bitsmith.texts.entries import READERS, json_lines, json_values, parquet_rows

ROWS = [{"text": f"text {n} \u00e9\n" * (n % 7), "n": n} for n in range(500)]


def records(path: Path) -> list[Any]:
    return [entry.record for entry in READERS[path.suffix](path)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_gives_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None) -> None:
    monkeypatch.setattr(entries, "_STEP", 100)
    path = tmp_path / "x.json"
    path.write_text(json.dumps(ROWS, indent=indent), encoding="utf-8")
    assert records(path) == ROWS
    lines = [entry.where for entry in json_values(path)]
    assert lines[0] == f"{path}, line {1 if indent is None else 2}"
    assert lines[3] == f"{path}, line {1 if indent is None else 2 + 3 * 4}"


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
def test_lines_and_arrays_under_either_name(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")
    assert records(path) == ROWS
    path.write_text("\n " + json.dumps(ROWS), encoding="utf-8-sig")
    assert records(path) == ROWS
    path.write_text(json.dumps(ROWS[1]), encoding="utf-8-sig")
    assert records(path) == [ROWS[1]]
    path.write_text("[]")
    assert records(path) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[{"a": 1},\n {"a": }]', "line 2: not JSON"),
        ('[{"a": 1}\n {"a": 2}]', "line 2: not JSON: expected ',' or ']', found '{'"),
        ('[{"a": 1},\n', "line 2: not JSON"),
        ('[{"a": 1}]\n\nmore', "line 3: not JSON: expected nothing after the end of the array, found 'm'"),
        ('[{"a": 1}, ' + "[" * 100_000, "line 1: not JSON that can be read: nested too deep"),
        ('{"a": 1}\nnot json', "line 2: not JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(FileError, match=f"x\\.json, {named}"):
        list(json_values(path))


def test_records_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "MOST_ENTRY", 1000)
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n' + json.dumps({"a": "x" * 2000}))
    with pytest.raises(FileError, match="line 2: longer than"):
        list(json_lines(path))
    path.write_text(json.dumps([{"a": "x" * 200_000}]))
    with pytest.raises(FileError, match="line 1: the value that begins here is not JSON, or longer"):
        list(json_values(path))


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(FileError, match="line 2: the file must be UTF-8, but byte 0xe9 at position 13"):
        list(json_lines(path))
    path.write_bytes(b'[{"text": "caf\xe9"}]\n')
    with pytest.raises(FileError, match="line 1: not UTF-8"):
        list(json_values(path))


def test_a_large_array_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("w") as file:
        file.write("[")
        file.writelines('{"text": "' + "x" * 1000 + '"},\n' for _ in range(8000))
        file.write("{}]")
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_values(path)) == 8001
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def parquet(path: Path, rows: Sequence[dict[str, Any]], **options: Any) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pyarrow.Table.from_pylist(list(rows)), path, **options)
    return path


def test_rows_of_parquet_files(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", ROWS, row_group_size=150)
    found = list(parquet_rows(path))
    assert [entry.record for entry in found] == [{"text": row["text"]} for row in ROWS]  # not the column n
    assert (found[-1].where, found[-1].done, found[-1].total) == (f"{path}, row 500", 500, 500)
    chats = [{"messages": [{"role": "user", "content": f"hello {n}"}]} for n in range(3)]
    assert records(parquet(tmp_path / "chats.parquet", chats)) == chats


def test_parquet_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "x.parquet", [{"body": "x", "id": 1}])
    with pytest.raises(FileError, match=r"x\.parquet: expected the columns of .* found body, id. Rename"):
        list(parquet_rows(path))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(FileError, match=r"x\.parquet: not a parquet file that can be read"):
        list(parquet_rows(path))

    def missing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(entries, "import_module", missing)
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'bitsmith\[data\]'"):
        list(parquet_rows(path))
