"""Every method from the command's words to a finished file; several files of one calibration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration import collect as collect_module
from bitsmith.calibration.method import methods
from bitsmith.errors import TensorError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.quantization import quantize_each
from tests.cli.command import Command
from tests.tiny import CONFIG, make_folder, weights

WORDS = {"calibration": "default", "calibration_tokens": 2048, "calibration_context": 128, "effort": "fast"}
ONE_LAYER = {**CONFIG, "num_hidden_layers": 1}  # where nothing depends on there being a second


def logits(model: Path) -> np.ndarray:
    tokens = np.random.default_rng(7).integers(5, 4000, (4, 64))
    return bitsmith.load(model).logits(tokens).astype(np.float64)


def outlying(folder: Path) -> Path:
    """A model whose attention and mixing are given a few channels fifty times as large as the others."""
    tensors = weights(CONFIG)
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"][:4] *= 50.0
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
            tensors[f"{prefix}{name}.weight"][:, :4] /= 50.0
    return make_folder(folder, tensors=tensors)


def loss(made: Path, original: np.ndarray) -> float:
    return float(((logits(made) - original) ** 2).mean())


@pytest.fixture
def one_layer(tmp_path: Path) -> Path:
    """As `tiny`, with one layer."""
    return make_folder(tmp_path / "tiny", num_hidden_layers=1)


@pytest.mark.parametrize("method", [name for name in methods() if not name.startswith("smoothquant")])
@pytest.mark.parametrize("to", ["native/int3-g32", "q4_k_m"])
def test_every_method_serves_every_kind_of_output(tiny: Path, tmp_path: Path, method: str, to: str) -> None:
    made = bitsmith.quantize(tiny, to=to, method=method, out=tmp_path / "out.gguf", **WORDS)
    plain = bitsmith.quantize(tiny, to=to, out=tmp_path / "plain.gguf")
    original = logits(tiny)
    assert made.method == method
    assert made.manifest is not None
    assert json.loads(made.manifest.recipe)["method"] == method
    assert bitsmith.inspect(made.out, verify=True).problems == ()
    assert loss(made.out, original) < 1.1 * loss(plain.out, original)  # random weights have no salient columns


def test_awq_takes_outlying_channels_out_of_the_weights(tmp_path: Path) -> None:
    """The 16-bit norms of the folder hold the factors exactly; linears that stay in 16 bits are rescaled with them."""
    model = outlying(tmp_path / "model")
    original = logits(model)
    errors = {}
    for method in ("nearest", "awq"):
        made = bitsmith.quantize(
            model, to="awq/int4", group_size=32, keep=["k_proj"], method=method, out=tmp_path / method, **WORDS
        )
        errors[method] = loss(made.out, original)
        assert bitsmith.inspect(made.out, verify=True).problems == ()
    assert errors["awq"] < 0.8 * errors["nearest"]
    source, folder = open_checkpoint(model).source, open_checkpoint(tmp_path / "awq").source
    norm, kept = "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.k_proj.weight"
    factor = source.rows(norm, 0, 1) / folder.rows(norm, 0, 1)
    assert not np.allclose(factor, 1.0)
    assert folder.tensors[kept].layout in ("f16", "bf16")
    np.testing.assert_allclose(folder.rows(kept, 0, 8), source.rows(kept, 0, 8) * factor, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("to", ["compressed/w8a8", "compressed/w8a8-static", "compressed/fp8-static"])
def test_smoothquant_helps_where_inputs_are_rounded(tmp_path: Path, to: str) -> None:
    model = outlying(tmp_path / "model")
    original = logits(model)
    errors = {}
    for method in ("nearest", "smoothquant", "smoothquant+gptq"):
        made = bitsmith.quantize(model, to=to, method=method, out=tmp_path / method, **WORDS)
        errors[method] = loss(made.out, original)
        assert bitsmith.inspect(made.out, verify=True).problems == ()
    if "w8a8" in to:
        assert errors["smoothquant"] < 0.5 * errors["nearest"]
        assert errors["smoothquant+gptq"] < errors["smoothquant"]
    assert errors["smoothquant"] < 0.1 * original.var()


def test_smoothquant_is_refused_where_inputs_stay(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gguf/q4_0 does not round inputs.*compressed/w8a8"):
        bitsmith.quantize(tiny, to="q4_0", method="smoothquant", dry_run=True)


def test_a_dead_channel_does_no_harm(tmp_path: Path) -> None:
    tensors = weights(ONE_LAYER)
    tensors["model.layers.0.input_layernorm.weight"][3] = 0.0
    tensors["model.layers.0.mlp.up_proj.weight"][5] = 0.0
    model = make_folder(tmp_path / "model", tensors=tensors, num_hidden_layers=1)
    original = logits(model)
    for method in ("nearest", "gptq", "awq+gptq", "learned"):
        made = bitsmith.quantize(model, to="native/int4-g32", method=method, out=tmp_path / method, **WORDS)
        assert loss(made.out, original) < 0.1 * original.var()
        if method == "gptq":
            assert any("never used: model.layers.0.self_attn.q_proj.weight 1" in note for note in made.notes)


def test_the_default_method_follows_the_calibration(tiny: Path, tmp_path: Path) -> None:
    def method(**words: object) -> str:
        return bitsmith.quantize(tiny, to="q4_k_m", dry_run=True, **words).method  # type: ignore[arg-type]

    imatrix = tmp_path / "im.gguf"
    bitsmith.imatrix(tiny, out=imatrix, calibration_tokens=512, calibration_context=64)
    assert method() == "nearest"
    assert method(calibration=str(imatrix)) == "nearest"
    assert method(calibration="default") == "gptq"
    assert method(effort="high") == "learned"
    assert method(effort="fast", calibration="default") == "nearest"


def test_effort_reaches_the_learned_codes(one_layer: Path, tmp_path: Path) -> None:
    words = {**WORDS, "calibration_tokens": 256, "calibration_context": 16}
    made = [
        bitsmith.quantize(
            one_layer, to="q2_k", method="learned", out=tmp_path / f"{effort}.gguf", **{**words, "effort": effort}
        )
        for effort in ("fast", "normal")
    ]
    assert [json.loads(each.manifest.recipe)["effort"] for each in made if each.manifest] == ["fast", "normal"]
    first, second = (each.manifest.tensors for each in made if each.manifest)
    assert any(a.sha256 != b.sha256 for a, b in zip(first, second, strict=True))


def test_several_outputs_run_the_original_once(
    one_layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    plain = collect_module.collect

    def collect(*words: object, **options: object) -> object:
        runs.append(1)
        return plain(*words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(collect_module, "collect", collect)
    choices = QuantizeConfig(
        out=tmp_path / "all",
        method="awq",
        calibration="default",
        calibration_tokens=1024,
        calibration_context=64,
        group_size=32,
    )
    made = quantize_each(one_layer, ["gptq/int4", "awq/int4", "q4_k_m"], choices)
    assert len(runs) == 1
    assert [each.out.parent for each in made] == [tmp_path / "all"] * 3
    for each in made:
        assert bitsmith.inspect(each.out, verify=True).problems == ()
    alone = bitsmith.quantize(
        one_layer,
        to="q4_k_m",
        out=made[2].out,
        force=True,
        method="awq",
        calibration_tokens=1024,
        calibration_context=64,
    )
    assert alone.manifest == made[2].manifest


def test_nothing_is_begun_where_one_plan_fails(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q9_k"):
        quantize_each(tiny, ["q4_0", "q9_k"], QuantizeConfig(out=tmp_path / "all"))
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "tiny-Q8_0.gguf").write_bytes(b"here first")
    with pytest.raises(UsageError, match=r"tiny-Q8_0\.gguf exists already"):
        quantize_each(tiny, ["q4_0", "q8_0"], QuantizeConfig(out=tmp_path / "all"))
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["tiny-Q8_0.gguf"]


def test_the_same_target_twice_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        quantize_each(tiny, ["q4_0", "gguf/q4_0"], QuantizeConfig(dry_run=True))


def test_a_file_cannot_take_several_outputs(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(UsageError, match="several targets need a folder"):
        quantize_each(tiny, ["q4_0", "q8_0"], QuantizeConfig(out=tmp_path / "x.gguf", dry_run=True))


def test_words_for_one_container_pass_the_others_by(tiny: Path) -> None:
    planned = quantize_each(tiny, ["q4_0", "gptq/int4"], QuantizeConfig(group_size=32, dry_run=True))
    scales = {t.info.name: t.parts["scales"][0] for t in planned[1].plan.tensors if "scales" in t.parts}
    assert scales["model.layers.0.self_attn.q_proj.weight"] == (CONFIG["hidden_size"] // 32, CONFIG["hidden_size"])
    assert "group_size" not in planned[0].plan.recipe.to_json()


def test_the_command_makes_several(tiny: Path, tmp_path: Path, bitsmith_command: Command) -> None:
    words = ["quantize", tiny, "--to", "q4_0", "--to", "q8_0", "--out", tmp_path / "all", "--json"]
    done = bitsmith_command(*words, "--calibration", "default", "--calibration-tokens", "512", "--device", "cpu")
    found = json.loads(done.out)
    assert [each["to"] for each in found] == ["gguf/q4_0", "gguf/q8_0"]
    assert [each["method"] for each in found] == ["gptq", "nearest"]
    assert found[0]["calibration_memory_bytes"] > found[1]["calibration_memory_bytes"] > 0
    assert all(Path(each["out"]).is_file() for each in found)


def test_an_absent_device_is_refused(tiny: Path) -> None:
    with pytest.raises(UsageError, match='device="tpu": unknown; expected cpu, cuda'):
        bitsmith.quantize(tiny, to="q4_0", calibration="default", device="tpu", dry_run=True)
    with pytest.raises(UsageError, match='device="cuda:99": torch finds'):
        bitsmith.quantize(tiny, to="q4_0", calibration="default", device="cuda:99", dry_run=True)


def test_hidden_states_on_disk_change_nothing(tiny: Path, tmp_path: Path) -> None:
    words = {**WORDS, "method": "learned", "to": "q4_0", "calibration_context": 32}
    first = bitsmith.quantize(tiny, out=tmp_path / "a.gguf", **words)
    second = bitsmith.quantize(tiny, out=tmp_path / "b.gguf", memory="1kB", **words)
    assert first.manifest == second.manifest


def test_head_and_embedding_are_rounded_under_hessians_of_their_own(tiny: Path, tmp_path: Path) -> None:
    words = {**WORDS, "to": "native/int4-g32", "pure": True}
    found = {}
    for method in ("nearest", "gptq"):  # error feedback gives up some of the weights' error for the outputs'
        made = bitsmith.quantize(tiny, method=method, out=tmp_path / method, **words)
        assert made.manifest is not None
        found[method] = {tensor.name: tensor.error for tensor in made.manifest.tensors}
    assert found["gptq"]["lm_head.weight"] > found["nearest"]["lm_head.weight"] > 0
    assert found["gptq"]["model.embed_tokens.weight"] != found["nearest"]["model.embed_tokens.weight"]


def test_manifests_name_method_and_text(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="compressed/w4a16", group_size=32, method="awq", out=tmp_path / "x", **WORDS)
    text = made.manifest.recipe if made.manifest else ""
    assert json.loads(text)["calibration"]["tokens"] == 2048


@pytest.mark.parametrize("method", ["nearest", "gptq", "awq", "learned"])
def test_damaged_weights_are_named_whatever_the_method(tmp_path: Path, method: str) -> None:
    tensors = weights(CONFIG)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 1] = np.nan
    model = make_folder(tmp_path / "model", tensors=tensors)
    with pytest.raises(TensorError, match=r"^model\.layers\.1\.mlp\.up_proj\.weight: the weights hold NaN"):
        bitsmith.quantize(model, to="native/int4-g32", method=method, out=tmp_path / "out", **WORDS)
    assert not (tmp_path / "out").exists()


def test_the_model_itself_is_never_replaced(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"would replace .*, which this run reads"):
        bitsmith.quantize(tiny, to="gptq/int4", group_size=32, out=tiny, force=True)
    single = bitsmith.quantize(tiny, to="bf16", out=tmp_path / "single.gguf").out
    with pytest.raises(UsageError, match="would replace a file that this run reads"):
        bitsmith.quantize(single, to="q8_0", out=single, force=True)
    assert bitsmith.inspect(single, verify=True).problems == ()


@pytest.mark.parametrize("to", ["q4_k_m", "native/int4-g32", "compressed/w4a16"])
def test_quantizing_twice_is_told(tiny: Path, tmp_path: Path, to: str) -> None:
    first = bitsmith.quantize(tiny, to="gptq/int4", group_size=32, out=tmp_path / "first").out
    words = {"group_size": 32} if to.startswith("compressed") else {}
    planned = bitsmith.quantize(first, to=to, requantize=True, dry_run=True, **words)  # type: ignore[arg-type]
    assert any("quantized already (gptq/int4-g32): losses add up" in warning for warning in planned.warnings)


def test_notes_name_tensors_as_the_output_does(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="gptq/int4", group_size=32, method="gptq", out=tmp_path / "out", **WORDS)
    kept = next(note for note in made.notes if note.startswith("rows that kept the nearest codes"))
    assert "model.layers.0." in kept


def test_a_refused_rule_names_its_target(tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"to=\"gguf/q4_0\": rule 'q_proj=int8'"):
        quantize_each(tiny, ["q4_0", "gptq/int4"], QuantizeConfig(rules=["q_proj=int8"], dry_run=True))
    with pytest.raises(UsageError, match=r"gptq is a container; .*gptq/int4"):
        bitsmith.quantize(tiny, to="gptq", dry_run=True)
    with pytest.raises(UsageError, match="rule 'q_proj': expected REGEX=TYPE"):
        bitsmith.quantize(tiny, to="gptq/int4", rules=["q_proj"], dry_run=True)
    with pytest.raises(UsageError, match=r'keep=\["\("\] is not a regular expression'):
        bitsmith.quantize(tiny, to="gptq/int4", keep=["("], dry_run=True)


def test_two_spellings_of_a_target_are_one(tiny: Path) -> None:
    with pytest.raises(UsageError, match="twice"):
        quantize_each(tiny, ["q4_k", "q4_k_m"], QuantizeConfig(dry_run=True))
