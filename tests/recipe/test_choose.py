"""Choosing types: reasons, rules, warnings, shapes. The mixes themselves are held in tests/oracle/test_mixes.py."""

from dataclasses import replace

import numpy as np
import pytest

from bitsmith.errors import FileError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe import ModelShape, Rule, Selection, TypeChoice, choose_types

SHAPE = ModelShape("llama", layers=16, heads=8, kv_heads=8)


def model(hidden: int = 256, layers: int = 16, tied: bool = False) -> list[TensorInfo]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (512, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (512, hidden)
    for i in range(layers):
        shapes[f"blk.{i}.attn_norm.weight"] = (hidden,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
            shapes[f"blk.{i}.{name}.weight"] = (hidden, hidden)
    return [TensorInfo(name, shape, "bf16", 0) for name, shape in shapes.items()]


def by_name(selection: Selection) -> dict[str, TypeChoice]:
    return {choice.name: choice for choice in selection.choices}


def test_choices_keep_the_order_of_the_tensors() -> None:
    tensors = model()[::-1]
    assert [c.name for c in choose_types("q4_k_m", SHAPE, tensors).choices] == [t.name for t in tensors]


def test_reasons_say_why() -> None:
    found = by_name(choose_types("Q4_K", SHAPE, model()))
    assert found["blk.0.attn_v.weight"].reason.startswith("q4_k_m: attn_v in the first or last eighth")
    assert found["blk.0.attn_norm.weight"] == TypeChoice(
        "blk.0.attn_norm.weight", "f32", "one-dimensional, stays f32", kept=True
    )
    narrow = by_name(choose_types("q4_k_m", SHAPE, model(hidden=192)))
    assert narrow["blk.3.attn_q.weight"].type == "q5_0"
    assert narrow["blk.3.attn_q.weight"].reason.startswith("fallback: row of 192 does not divide by 256")


def test_a_fallback_is_a_warning() -> None:
    warnings = choose_types("q4_k_m", SHAPE, model(hidden=192)).warnings
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{16 * 6 + 1} of {len(model())} tensors")
    assert choose_types("q4_k_m", SHAPE, model()).warnings == ()


def test_a_rule_decides_and_changes_nothing_else() -> None:
    plain = by_name(choose_types("q4_k_m", SHAPE, model()))
    ruled = by_name(choose_types("q4_k_m", SHAPE, model(), rules=[Rule.parse(r"blk\.0\.(attn_v|ffn_down)=f16")]))
    changed = {name for name in plain if plain[name].type != ruled[name].type}
    assert changed == {"blk.0.attn_v.weight", "blk.0.ffn_down.weight"}
    assert ruled["blk.0.attn_v.weight"].reason == r"rule 'blk\.0\.(attn_v|ffn_down)=f16'"


def test_rules_hold_in_pure_and_float_mixes_and_fall_back_by_row() -> None:
    rules = [Rule.parse("ffn_up=q6_k")]
    for mix, pure in [("q4_0", True), ("f16", False)]:
        found = by_name(choose_types(mix, SHAPE, model(), pure=pure, rules=rules))
        assert found["blk.1.ffn_up.weight"].type == "q6_k"
        assert found["blk.1.ffn_down.weight"].type == mix
    found = by_name(choose_types("f16", SHAPE, model(hidden=96), rules=rules))
    assert found["blk.1.ffn_up.weight"].type == "q8_0"


def test_rules_that_decide_nothing_are_reported() -> None:
    texts = ["ffn_gate=q6_k", "norm=q8_0", "blk=q8_0", "ffn_up=q4_k"]
    warnings = choose_types("q4_k_m", SHAPE, model(), rules=[Rule.parse(t) for t in texts]).warnings
    assert warnings[0] == "rule 'ffn_gate=q6_k' matches no tensor"
    assert warnings[1].startswith("rule 'norm=q8_0' matches only tensors that are never quantized")
    assert warnings[2] == "rule 'ffn_up=q4_k' has no effect: earlier rules match all its tensors"
    assert len(warnings) == 3


def test_a_tied_embedding_is_treated_as_the_output() -> None:
    assert by_name(choose_types("q4_k_s", SHAPE, model(tied=True)))["token_embd.weight"].type == "q6_k"
    assert by_name(choose_types("q4_k_s", SHAPE, model()))["token_embd.weight"].type == "q4_k"


@pytest.mark.parametrize(
    ("name", "shape", "quantized"),
    [
        ("blk.0.ffn_up.weight", (64, 256), True),
        ("blk.0.ffn_up_exps.weight", (4, 64, 256), True),
        ("blk.0.ffn_up.weight", (1, 1, 256), False),
        ("blk.0.ffn_up.weight", (256, 1), True),
        ("blk.0.ffn_gate_inp.weight", (8, 256), False),
        ("position_embd.weight", (8, 256), False),
        ("blk.0.attn_q_norm.weight", (8, 256), False),
        ("blk.0.ffn_down_exps.bias", (8, 256), False),
        ("blk.0.time_mix_w1.weight", (8, 256), False),
        ("v.patch_embd.weight", (8, 256), False),
    ],
)
def test_what_is_never_quantized(name: str, shape: tuple[int, ...], quantized: bool) -> None:
    choice = choose_types("q8_0", SHAPE, [TensorInfo(name, shape, "f16", 0)]).choices[0]
    assert choice.kept is not quantized
    assert quantized or choice.type == "f32"


def test_integer_tensors_are_copied() -> None:
    table = TensorInfo("blk.0.ffn_gate_tid2eid.weight", (8, 256), "i32", 0)
    assert choose_types("q4_k_m", SHAPE, [table]).choices[0].type == "i32"


def test_a_gguf_source_keeps_the_layout_of_what_is_never_quantized() -> None:
    tensors = [TensorInfo("blk.0.ffn_gate_inp.weight", (8, 256), "f16", 0), *model()]
    selection = choose_types("q4_k_m", SHAPE, tensors)
    kept = by_name(selection.keeping(tensors))
    assert by_name(selection)["blk.0.ffn_gate_inp.weight"].type == "f32"
    assert kept["blk.0.ffn_gate_inp.weight"].type == "f16"
    assert kept["blk.0.attn_q.weight"].type == "q4_k"


def test_biases_do_not_count_as_layers() -> None:
    tensors = model()
    biased = [*tensors, *[TensorInfo(f"blk.{i}.ffn_down.bias", (256,), "f32", 0) for i in range(16)]]
    plain, with_bias = (by_name(choose_types("q4_k_m", SHAPE, t)) for t in (tensors, biased))
    assert all(with_bias[name] == choice for name, choice in plain.items())


def test_layers_count_in_numbers_not_letters() -> None:
    found = by_name(choose_types("q4_k_s", SHAPE, model()))
    early = [i for i in range(16) if found[f"blk.{i}.attn_v.weight"].type == "q5_k"]
    assert early == [0, 1, 2, 3]


CONFIG = ModelConfig("mistral", 80, 8192, 28672, 64, 8, 128, 32000, 4096, 1e-5)


def test_shape_from_a_config() -> None:
    shape = ModelShape.from_config(CONFIG)
    assert shape == ModelShape("llama", 80, 64, 8)
    assert shape.queries_per_key == 8
    assert shape.is_70b
    assert not ModelShape.from_config(replace(CONFIG, kv_heads=64)).is_70b
    assert not ModelShape.from_config(replace(CONFIG, arch="qwen3")).is_70b


def test_shape_from_gguf_keys() -> None:
    keys = {
        "general.architecture": "qwen3moe",
        "qwen3moe.block_count": np.uint32(48),
        "qwen3moe.attention.head_count": [32, 32],
        "qwen3moe.attention.head_count_kv": np.array([4, 4]),
        "qwen3moe.expert_count": 128,
    }
    assert ModelShape.from_gguf(keys) == ModelShape("qwen3moe", 48, 32, 4, 128)


def test_shape_from_gguf_without_counts() -> None:
    assert ModelShape.from_gguf({"general.architecture": "odd"}, model(layers=12)) == ModelShape("odd", 12)
    assert ModelShape.from_gguf({"general.architecture": "a", "a.attention.head_count": 4}).kv_heads == 4
    assert ModelShape.from_gguf({}).queries_per_key == 0


@pytest.mark.parametrize("wrong", ["many", 1.5, True, ["x"], [[1]]])
def test_a_count_that_is_no_number_names_its_key(wrong: object) -> None:
    with pytest.raises(FileError, match=r"a\.attention\.head_count: expected a whole number"):
        ModelShape.from_gguf({"general.architecture": "a", "a.block_count": 1, "a.attention.head_count": wrong})
