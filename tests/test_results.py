"""Results: one line as `repr`, and a small table with escaped texts for notebooks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.evaluation.speed import Rate, Speed
from bitsmith.system.tables import html_table

ODD = "<b>x</b>"


def check(result: Any, *shown: str) -> str:
    line, table = repr(result), result._repr_html_()
    assert "\n" not in line
    assert len(line) < 400
    assert line.startswith(f"<{type(result).__name__} ")
    assert table.startswith("<table>")
    assert table.endswith("</table>")
    for each in shown:
        assert each in line
    return str(table)


def test_texts_are_escaped() -> None:
    found = html_table(ODD, [(ODD, 5)], headings=(ODD, "n"))
    assert found.count("&lt;b&gt;x&lt;/b&gt;") == 3
    assert ODD not in found


def test_results_of_the_functions(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf")
    table = check(made, "gguf/q8_0", "x.gguf", "bits per weight", "nearest")
    assert "<td>took</td>" in table
    planned = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / ODD, dry_run=True)
    assert ODD not in check(planned, "planned")
    text = tmp_path / "text.txt"
    text.write_text("One two three four five six seven eight nine ten. " * 20)
    lost = bitsmith.evaluate(made.out, against=tiny, text=text, context=32, max_windows=2)
    assert "mean KLD" in check(lost, "perplexity", "KLD", "against 'tiny'")
    inspected = bitsmith.inspect(made.out)
    assert "<td>q8_0</td>" in check(inspected, "gguf, llama", "tensors")
    assert ODD not in check(replace(inspected, problems=(ODD,)), "with problems")
    imatrix = bitsmith.imatrix(tiny, out=tmp_path / "im.gguf", calibration_tokens=64, calibration_context=64)
    check(imatrix, "15 matrices, 64 tokens of 'pydoc_data.topics")


def test_a_plan_and_a_speed() -> None:
    plan = bitsmith.plan("7B", devices=["rtx-4090"], formats=["q4_k_m"])
    assert "<td>q4_k_m</td>" in check(plan, "1 formats on rtx-4090")
    speed = Speed(ODD, 2, Rate(8, (0.5,)), None, 1.0, 10**9, 10, 1e9)
    assert ODD not in check(speed, "2 threads, prompt 16.0 tokens/s")


@pytest.mark.parametrize(
    ("function", "words", "named"),
    [
        ("load", {"threads": "4"}, "threads: expected a whole number or None, found '4'"),
        ("load", {"kernel": 5}, "kernel: expected a string or None, found 5"),
        ("load", {"cache_type": None}, "cache_type: expected a string, found None"),
        ("load", {"threads": 0}, "threads=0: expected 1 to 1024"),
        ("evaluate", {"context": "long"}, "context: expected a whole number, found 'long'"),
        ("evaluate", {"max_windows": 2.5}, "max_windows: expected a whole number or None, found 2.5"),
        ("evaluate", {"text": 5}, "text: expected a string or a path or a list of them or None, found 5"),
        ("evaluate", {"text": ["a", 5]}, "text: expected a string or a path or a list of them or None"),
        ("evaluate", {"against": 5}, "against: expected a string or a path or None, found 5"),
        ("bench", {"prompt": "512"}, "prompt: expected a whole number or None, found '512'"),
        ("bench", {"repeat": 0}, "repeat=0: expected 1 or more"),
        ("inspect", {"verify": 1}, "verify: expected True or False, found 1"),
        ("plan", {"context": "8k"}, "context: expected a whole number or None, found '8k'"),
        ("plan", {"devices": "rtx-4090"}, "devices: expected a list of strings, found 'rtx-4090'"),
        ("plan", {"memory": 24}, "memory: expected a string or None, found 24"),
        ("quantize", {"to": 5}, "to: expected a string or None, found 5"),
        ("quantize", {"to": "q8_0", "calibration": 5}, "calibration: expected a string or a path or a list of them"),
        ("quantize", {"to": "q8_0", "memory": 10**9}, "memory: expected a string or None, found 1000000000"),
        ("imatrix", {"out": "x.gguf", "threads": 0}, "threads=0: expected 1 to 1024"),
        ("imatrix", {"out": "x.gguf", "memory": 10**9}, "memory: expected a string or None"),
        ("imatrix", {"out": 5}, "out: expected a string or a path, found 5"),
    ],
)
def test_arguments_of_a_wrong_kind(tiny: Path, function: str, words: dict[str, Any], named: str) -> None:
    with pytest.raises(bitsmith.BitsmithError) as caught:
        getattr(bitsmith, function)(tiny, **words)
    assert named in str(caught.value)


def test_a_model_of_a_wrong_kind() -> None:
    for function, words in (("load", {}), ("evaluate", {}), ("bench", {}), ("inspect", {}), ("plan", {})):
        with pytest.raises(bitsmith.BitsmithError, match="model: expected a string or a path, found 5"):
            getattr(bitsmith, function)(5, **words)
    with pytest.raises(bitsmith.BitsmithError, match="model: expected a string or a path, found 5"):
        bitsmith.quantize(5, to="q8_0")  # type: ignore[arg-type]
    with pytest.raises(bitsmith.BitsmithError, match="model: expected a string or a path, found 5"):
        bitsmith.imatrix(5, out="x.gguf")  # type: ignore[arg-type]


def test_memory_in_words_is_understood(tiny: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"calibration_tokens": 64, "calibration_context": 64, "memory": "1GB", "threads": 1}
    assert bitsmith.imatrix(tiny, out=tmp_path / "im.gguf", **words).entries == 15
