"""Adapters in PEFT's layout: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import BitsmithError
from bitsmith.models.adapter import read_adapter
from bitsmith.models.arch.names import permute_rows
from bitsmith.models.checkpoint import open_checkpoint
from tests.adapters import make_adapter
from tests.cli.command import Command


def test_layers_by_their_names(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    found = read_adapter(make_adapter(tmp_path / "a", tiny, targets=("q_proj", "down_proj")), checkpoint)
    assert set(found.layers) == {f"blk.{layer}.{name}" for layer in (0, 1) for name in ("attn_q", "ffn_down")}
    low = found.layers["blk.1.ffn_down"]
    assert (low.down.shape, low.up.shape, low.scale) == ((4, 128), (64, 4), 2.0)
    assert not found.checked
    np.testing.assert_allclose(low.delta(3, 9), 2.0 * low.up[3:9] @ low.down, rtol=1e-5, atol=1e-7)


def test_rows_of_q_and_k_in_ggufs_order(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    bitsmith.convert(tiny, to="gguf/bf16", out=file)
    folder = make_adapter(tmp_path / "a", tiny)
    ours, theirs = (read_adapter(folder, open_checkpoint(model)).layers for model in (tiny, file))
    assert np.array_equal(theirs["blk.0.attn_q"].up, permute_rows(ours["blk.0.attn_q"].up, 4))
    assert np.array_equal(theirs["blk.0.attn_k"].up, permute_rows(ours["blk.0.attn_k"].up, 2))
    assert np.array_equal(theirs["blk.0.attn_v"].up, ours["blk.0.attn_v"].up)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "only LORA is read"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"lora_alpha": "many"}, "expected lora_alpha to be a number"),
        ({"tensors": {}}, "holds no"),
        ({"tensors": {"base_model.model.lm_head.lora_A.weight": np.ones((4, 64), np.float32)}}, "no linear layer"),
        ({"tensors": {"base_model.model.x.modules_to_save.weight": np.ones((2, 2), np.float32)}}, "no matrix of LoRA"),
    ],
)
def test_what_is_refused(tiny: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = make_adapter(tmp_path / "a", tiny, **changes)
    with pytest.raises(BitsmithError, match=said):
        read_adapter(folder, open_checkpoint(tiny))


def test_matrices_of_another_shape_and_without_values(tiny: Path, tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    down, up = np.ones((4, 64), np.float32), np.ones((64, 4), np.float32)
    for tensors, said in (
        ({f"{name}A.weight": down, f"{name}B.weight": up[:32]}, r"\[64, 64\] there"),
        ({f"{name}A.weight": down}, "only one of the two matrices"),
        ({f"{name}A.weight": down * np.nan, f"{name}B.weight": up}, "NaN"),
    ):
        folder = make_adapter(tmp_path / "a", tiny, tensors=tensors)
        with pytest.raises(BitsmithError, match=said):
            read_adapter(folder, open_checkpoint(tiny))


def test_from_the_command_line(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a", tiny)
    words = ("eval", tiny, "--context", 32, "--max-windows", 2, "--json")
    plain, adapted = (json.loads(bitsmith_command(*words, *more).out) for more in ((), ("--adapter", folder)))
    assert adapted["loss"] != plain["loss"]
    spoken = [
        bitsmith_command("run", tiny, "--raw", "-p", "Once upon", "-n", 8, "--temp", 0, *more)
        for more in ((), ("--adapter", folder))
    ]
    assert [each.code for each in spoken] == [0, 0]
    assert spoken[0].out != spoken[1].out
    assert "cannot be told" in spoken[1].err
    assert "there is no adapter_config.json" in bitsmith_command.fails(1, *words, "--adapter", tiny)
    (tmp_path / "m.txt").write_text("a")
    assert "--base is for adapters" in bitsmith_command.fails(2, "convert", tiny, "--to", "bf16", "--base", tiny)
    made = json.loads(bitsmith_command("convert", folder, "--to", "gguf-lora", "--json").out)
    assert Path(made["out"]) == tmp_path / "a-lora.gguf"
    assert "exists already" in bitsmith_command.fails(2, "convert", folder, "--to", "gguf-lora")
    folder = make_adapter(tmp_path / "b", tiny, base_model_name_or_path=str(tmp_path / "gone"))
    assert "give --base MODEL" in bitsmith_command.fails(2, "convert", folder, "--to", "gguf-lora")
