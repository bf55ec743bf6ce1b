"""Our choice of types against llama-quantize's, frozen by bench/freeze_mixes.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe import ALIASES, MIXES, ModelShape, choose_types

TABLE: dict[str, Any] = json.loads((Path(__file__).parent / "llama_quantize_types.json").read_text("utf-8"))


def unsqueeze(text: str) -> list[str]:
    """ "q6_k*2 q4_k*1" -> ["q6_k", "q6_k", "q4_k"]."""
    pairs = (run.split("*") for run in text.split())
    return [kind for kind, count in pairs for _ in range(int(count))]


def tensors_of(model: dict[str, Any]) -> list[TensorInfo]:
    """The model's tensors in no order that means anything: types must not depend on it."""
    infos = []
    for pattern, entry in model["tensors"].items():
        shape = tuple(entry["shape"])
        for layer in range(model["shape"]["layers"] if "*" in pattern else 1):
            infos.append(TensorInfo(pattern.replace("*", str(layer)), shape, "f16", 0))
    order = np.random.default_rng(0).permutation(len(infos))
    return [infos[i] for i in order]


def expected_types(model: dict[str, Any], label: str) -> dict[str, str]:
    expected = {}
    for pattern, entry in model["tensors"].items():
        kinds = next(
            kinds for kinds, labels in entry["types"].items() if labels == "all" or label in labels.split(", ")
        )
        for layer, kind in enumerate(unsqueeze(kinds)):
            expected[pattern.replace("*", str(layer))] = kind
    return expected


def options_of(label: str) -> tuple[str, bool, bool]:
    mix, _, option = label.partition(" ")
    return mix, option == "importance", option == "pure"


@pytest.mark.parametrize("name", TABLE["models"])
def test_every_tensor_gets_llama_quantizes_type(name: str) -> None:
    model = TABLE["models"][name]
    shape, tensors = ModelShape(**model["shape"]), tensors_of(model)
    for label in model["runs"].split(", "):
        mix, importance, pure = options_of(label)
        selection = choose_types(mix, shape, tensors, importance=importance, pure=pure)
        expected = expected_types(model, label)
        chosen = {choice.name: choice.type for choice in selection.choices}
        wrong = {n: (chosen[n], expected[n]) for n in expected if chosen[n] != expected[n]}
        assert not wrong, f"{label}: (ours, llama-quantize's) {wrong}"
        assert chosen.keys() == expected.keys()


def test_the_table_is_what_it_says() -> None:
    """Layer rules, importance and fallbacks all show in the table: a table of base types only would prove nothing."""
    assert TABLE["build"] == 11434
    theirs = [mix for mix in MIXES if mix != "nvfp4"]  # llama.cpp has the type, llama-quantize no such mix
    every = {f"{mix}{option}" for mix in [*theirs, *ALIASES] for option in ("", " importance")}
    every |= {f"{mix} pure" for mix in theirs}
    refused = {run for run in every if run.startswith("q1_0")}  # rows that its blocks of 128 do not divide
    for name in ("reference", "llama-8b", "llama-70b", "qwen2-0.5b, tied", "llama, rows of 192", "llama, rows of 80"):
        assert set(TABLE["models"][name]["runs"].split(", ")) == every - (refused if "rows of" in name else set())
    eight_b = expected_types(TABLE["models"]["llama-8b"], "q4_k_m")
    assert (eight_b["blk.0.attn_v.weight"], eight_b["blk.4.attn_v.weight"]) == ("q6_k", "q4_k")
    narrow = TABLE["models"]["llama, rows of 192"]
    assert expected_types(narrow, "q4_k_m")["blk.0.attn_q.weight"] == "q5_0"
    assert expected_types(narrow, "q4_k_m")["output.weight"] == "q8_0"
    assert set(expected_types(TABLE["models"]["llama, rows of 80"], "q6_k").values()) == {"f16", "f32"}
    down = "blk.0.ffn_down.weight"
    for mix, alone, weighted in [("q4_0", "q4_0", "q4_1"), ("q5_0", "q5_0", "q5_1"), ("iq4_xs", "q5_k", "iq4_xs")]:
        assert expected_types(TABLE["models"]["llama-8b"], mix)[down] == alone
        assert expected_types(TABLE["models"]["llama-8b"], f"{mix} importance")[down] == weighted
