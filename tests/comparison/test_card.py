"""The model card: its front matter, its table, and how the files are run."""

from __future__ import annotations

from pathlib import Path

import pytest

import bitsmith
from bitsmith.comparison.card import base_of, card, eval_results
from bitsmith.comparison.tasks.scores import TaskScore
from tests.cli.command import Command


def test_a_card_for_the_hub(bitsmith_command: Command, tiny: Path, prose: Path, tmp_path: Path) -> None:
    words = ("compare", tiny, "--to", "q8_0,gptq/int4", "--text", prose, "-c", 32, "--max-windows", 4)
    words += ("--no-noise-floor", "--generate", 0, "-q", "--card", tmp_path / "repo")
    assert bitsmith_command(*words).code == 0
    lines = (tmp_path / "repo" / "README.md").read_text().splitlines()
    assert lines[0] == "---"
    front = lines[1 : lines.index("---", 1)]
    assert front == [
        'base_model: "tiny"',
        "base_model_relation: quantized",
        "pipeline_tag: text-generation",
        *("tags:", "- bitsmith", "- gguf", "- gptq"),
    ]
    table = [line for line in lines if line.startswith("| ")]
    assert table[0].startswith("| file | size | bits per weight")
    assert [line.split(" | ")[0] for line in table[1:]] == ["| *tiny*", "| q8\\_0", "| gptq/int4"]
    assert any("llama-cli -m" in line for line in lines)
    assert any("vllm serve" in line for line in lines)
    assert "exists" in bitsmith_command.fails(2, *words)


@pytest.mark.parametrize(
    ("model", "config", "base"),
    [
        ("owner/name", {}, "owner/name"),
        ("/some/folder/", {}, "folder"),
        ("/some/folder", {"_name_or_path": "owner/base"}, "owner/base"),
        ("/some/folder", {"_name_or_path": "/home/me"}, "folder"),
    ],
)
def test_the_base_is_the_hubs_name_where_it_is_known(model: str, config: dict[str, str], base: str) -> None:
    assert base_of(model, config) == base


def test_results_of_lm_eval_become_yaml(tiny: Path, prose: Path) -> None:
    from dataclasses import replace

    words = {"context": 32, "max_windows": 4, "noise_floor": False, "generate": 0}
    found = bitsmith.compare(tiny, to="q8_0", text=prose, **words)  # type: ignore[arg-type]
    row = replace(found.rows[0], tasks=(TaskScore("hellaswag (acc_norm)", 0.4, 0.3, 0.5, 100),))
    assert eval_results(found.rows[0]) == ""
    assert eval_results(row).startswith('- dataset:\n    id: "hellaswag"')
    assert "  value: 40.00" in eval_results(row)
    assert "hellaswag" in card(replace(found, original=replace(found.original, tasks=row.tasks), rows=(row,)), "o/n")


def test_the_verdict_is_escaped_and_a_name_is_no_tag(tiny: Path, prose: Path, tmp_path: Path) -> None:
    """Ollama's tag is a format: a file whose name does not end in one has none."""
    from dataclasses import replace

    words = {"context": 32, "max_windows": 4, "noise_floor": False, "generate": 0}
    found = bitsmith.compare(tiny, to="q8_0", text=prose, **words)  # type: ignore[arg-type]
    text = card(replace(found, verdict="Take a_b_c | <b>*x*</b>."), "o/n")
    assert r"Take a\_b\_c \| \<b\>\*x\*\</b\>." in text
    assert "hf.co/OWNER/REPOSITORY:Q8_0`" in text
    row = replace(found.rows[0], path=tmp_path / "my-model.gguf")
    assert "hf.co/OWNER/REPOSITORY`" in card(replace(found, rows=(row,)), "o/n")
