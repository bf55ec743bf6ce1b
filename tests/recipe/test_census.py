"""The census: what is lost, renamed, cut or listed under a wrong name is refused before anything is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.containers.container import Modules
from bitsmith.containers.hf_folder import CONFIG
from bitsmith.containers.module_lists import (
    all_spellings,
    any_part,
    beginnings_or_ends,
    shell_patterns,
    spellings,
    whole_names,
)
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.recipe.plan import Assignment
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target
from tests.tiny import CONFIG as TINY
from tests.tiny import make_folder, weights

DOWN = "model.layers.0.mlp.down_proj"
TARGETS = ("q4_0", "native/nf4", "gptq/int4", "awq/int4", "compressed/w4a16", "bnb/nf4")


def planned(model: Path, to: str, **options: object) -> Assignment:
    return assign(open_checkpoint(model), Target.parse(to), PlanOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("to", TARGETS)
def test_every_weight_is_counted(tiny: Path, to: str) -> None:
    found = planned(tiny, to).census
    assert found.weights == sum(info.parameters for info in open_checkpoint(tiny).source.tensors.values())
    assert found.tensors == 21
    assert found.left == {}
    assert sum(found.bits.values()) == found.weights
    assert json.loads(json.dumps(found.to_dict()))["tensors"] == 21


@pytest.mark.parametrize("to", TARGETS)
def test_a_lost_tensor_is_refused(tiny: Path, to: str) -> None:
    whole = planned(tiny, to)
    name = "blk.0.ffn_down.weight" if to == "q4_0" else f"{DOWN}.weight"
    lost = replace(whole, tensors=tuple(each for each in whole.tensors if each.info.name != name))
    with pytest.raises(UnsupportedError, match=r"down_proj.weight has 8,192 weights, of which 0 have a place"):
        lost.census  # noqa: B018


@pytest.mark.parametrize("to", TARGETS)
def test_a_name_that_no_runtime_asks_for_is_refused(tiny: Path, to: str) -> None:
    whole = planned(tiny, to)
    first = whole.tensors[3]
    renamed = replace(first, info=replace(first.info, name=f"{first.info.name}.x"))
    with pytest.raises(FileError, match="missing"):
        replace(whole, tensors=(*whole.tensors[:3], renamed, *whole.tensors[4:])).census  # noqa: B018
    twice = replace(whole, tensors=(*whole.tensors, first))
    with pytest.raises(FileError, match="two tensors would be called"):
        twice.census  # noqa: B018


def test_bytes_that_do_not_fit_the_type_are_refused(tiny: Path) -> None:
    whole = planned(tiny, "q4_0")
    first = whole.tensors[0]
    short = replace(first, info=replace(first.info, nbytes=first.info.nbytes - 2))
    with pytest.raises(UnsupportedError, match="its parts have"):
        replace(whole, tensors=(short, *whole.tensors[1:])).census  # noqa: B018


@pytest.mark.parametrize(
    ("to", "key"),
    [("awq/int4", "modules_to_not_convert"), ("compressed/w4a16", "ignore"), ("bnb/nf4", "llm_int8_skip_modules")],
)
def test_a_stale_list_is_refused(tiny: Path, to: str, key: str) -> None:
    whole = planned(tiny, to, keep=(DOWN,))
    assert whole.census.unquantized == ("lm_head", DOWN)

    def listing(*names: str) -> Assignment:
        config = json.loads(whole.extras[CONFIG])
        config["quantization_config"][key] = list(names)
        return replace(whole, extras={**whole.extras, CONFIG: json.dumps(config).encode()})

    assert listing("lm_head", DOWN).census.unquantized == ("lm_head", DOWN)
    with pytest.raises(UnsupportedError, match=f"{DOWN} stays in 16 bits, but the configuration does not say so"):
        listing("lm_head", "language_model.layers.0.mlp.down_proj").census  # noqa: B018
    with pytest.raises(UnsupportedError, match="no module of the output has that name"):
        listing("lm_head", DOWN, "model.layers.9.mlp.down_proj").census  # noqa: B018
    with pytest.raises(UnsupportedError, match="gets codes, but runtimes would read it as plain weights"):
        listing("lm_head", DOWN, "model.layers.1.mlp.down_proj").census  # noqa: B018


def test_nothing_is_written_without_a_census(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that names a part of another module: vLLM would load AWQ's codes of that one as plain weights."""
    from bitsmith.containers import awq

    usual = awq.CONTAINER

    def configuration(modules: Modules) -> dict[str, Any]:
        return {**usual.configuration(modules), "modules_to_not_convert": ["lm_head", "mlp.gate"]}

    broken = replace(usual, configuration=configuration)
    monkeypatch.setattr(awq, "CONTAINER", broken)
    with pytest.raises(UnsupportedError, match=r"mlp\.gate_proj gets codes"):
        bitsmith.quantize(tiny, to="awq/int4", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tied_head_is_left_with_its_reason(tmp_path: Path) -> None:
    tensors = {**weights(TINY), "model.layers.0.self_attn.rotary_emb.inv_freq": weights(TINY)["model.norm.weight"]}
    folder = make_folder(tmp_path / "m", tensors=tensors, tie_word_embeddings=True)
    left = planned(folder, "q4_0").census.left
    assert left["model.layers.0.self_attn.rotary_emb.inv_freq"] == "a buffer, or the embedding again"


def test_modules_have_the_names_of_files_and_of_runtimes() -> None:
    assert spellings("model.layers.0.mlp.up_proj") == ("model.layers.0.mlp.up_proj",)
    old, new = "language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"
    assert spellings(old) == (old, new)
    assert spellings(new) == (new, old)
    assert spellings("vision_tower.blocks.0") == ("vision_tower.blocks.0", "model.vision_tower.blocks.0")
    assert spellings("language_model.lm_head") == ("language_model.lm_head", "lm_head")
    assert all_spellings([old, new]) == [old, new]


def test_lists_are_read_as_each_runtime_reads_them() -> None:
    names = ["a.gate", "a.gate_proj", "b.gate", "lm_head"]
    assert whole_names(["a.gate", "re:b\\..*"], names) == {"a.gate", "b.gate"}
    assert any_part(["a.gate"], names) == {"a.gate", "a.gate_proj"}
    assert beginnings_or_ends(["a.gate"], names) == {"a.gate"}
    assert beginnings_or_ends(["gate"], names) == {"a.gate", "b.gate"}
    assert beginnings_or_ends(["a"], names) == {"a.gate", "a.gate_proj"}
    assert shell_patterns(["a.*", "lm_head"], names) == {"a.gate", "a.gate_proj", "lm_head"}
