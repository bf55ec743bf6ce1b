"""Verdicts: what is repeated everywhere, held against arithmetic; and what would make it fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import bitsmith
from bitsmith.errors import UsageError
from bitsmith.planner import verdict as verdicts
from bitsmith.planner.advice import advise
from bitsmith.planner.report import PlanReport, Row
from tests.tiny import CONFIG, make_folder, weights


def row(report: PlanReport, format: str) -> Row:
    return next(row for row in report.rows if row.weights.target == format)


def test_a_7b_in_int4_fits_a_card_of_6_gb_at_2048() -> None:
    short = bitsmith.plan("7B", devices=["gtx-1060"], context=2048, formats=["int4"])
    assert row(short, "int4").verdicts[0].kind == "fits"
    long = bitsmith.plan("7B", devices=["gtx-1060"], context=8192, formats=["int4"])
    found = row(long, "int4").verdicts[0]
    assert found.memory.cache == 2 * 32 * 4096 * 8192 * 2  # 4.3 GB, full attention
    assert found.kind == "less context"
    assert 2048 < found.context < 8192
    assert f"int4 with {found.context:,} tokens of context" in " ".join(advise(long))


def test_a_70b_in_4_bits_does_not_fit_24_gb() -> None:
    report = bitsmith.plan("70B", memory="24GB", formats=["int4"])
    found = row(report, "int4").verdicts[0]
    assert found.kind == "partly outside"
    assert found.needed == 2
    inside = found.total - found.outside_bytes
    assert inside <= found.room < inside + 2 * found.outside_bytes / found.outside
    said = " ".join(advise(report))
    assert "2.4 bits a weight" in said
    assert "2 x 24GB" in said


def test_two_a100_hold_a_70b_in_f16_with_a_cache_of_8k() -> None:
    report = bitsmith.plan("70B", devices=["a100-80", "2x a100-80"], context=8192, formats=["f16", "q4_k_m"])
    one, two = row(report, "f16").verdicts
    assert one.needed == 2
    assert one.kind == "partly outside"
    assert two.kind == "fits"
    assert row(report, "q4_k_m").verdicts[0].kind == "fits"  # one for Q4_K_M


def test_largest_context_is_the_largest() -> None:
    report = bitsmith.plan("llama-2-13b", devices=["rtx-3060"], context=4096, formats=["q5_k_m"])
    found = row(report, "q5_k_m").verdicts[0]
    assert found.kind == "less context"
    for context, kind in ((found.context, "fits"), (found.context + 1, "less context")):
        again = bitsmith.plan("llama-2-13b", devices=["rtx-3060"], context=context, formats=["q5_k_m"])
        assert row(again, "q5_k_m").verdicts[0].kind == kind


def test_batches_and_cache_types() -> None:
    one = row(bitsmith.plan("llama-3-8b", devices=["rtx-4090"], formats=["q8_0"]), "q8_0").verdicts[0]
    four = bitsmith.plan("llama-3-8b", devices=["rtx-4090"], formats=["q8_0"], batch=4, kv="q8_0")
    assert row(four, "q8_0").verdicts[0].memory.cache == 4 * one.memory.cache * 8.5 / 16


def test_speed_is_bandwidth_over_bytes() -> None:
    report = bitsmith.plan("llama-3-8b", devices=["rtx-4090"], formats=["q8_0"], context=1)
    found = row(report, "q8_0")
    read = found.weights.read_bytes(report.spec.network)
    speed = found.verdicts[0].speed
    assert speed == pytest.approx(0.7 * 1008e9 / read, rel=1e-3)
    longer = bitsmith.plan("llama-3-8b", devices=["rtx-4090"], formats=["q8_0"], context=8192)
    assert row(longer, "q8_0").verdicts[0].speed == pytest.approx(0.7 * 1008e9 / (read + 2**30), rel=1e-3)


def test_layers_outside_are_read_at_the_systems_speed() -> None:
    report = bitsmith.plan("llama-3-70b", devices=["rtx-4090"], formats=["q4_k_m"])
    found = row(report, "q4_k_m").verdicts[0]
    assert found.speed is not None
    outside = found.outside_bytes / verdicts.SYSTEM_BANDWIDTH
    assert found.speed < 1 / outside


def test_cpus_and_macs_have_nothing_outside() -> None:
    for devices, memory in ((["m1-8"], None), (["cpu-ddr5"], "8GB")):
        report = bitsmith.plan("llama-3-70b", devices=devices, memory=memory, formats=["q4_k_m"])
        found = row(report, "q4_k_m").verdicts[0]
        assert (found.kind, found.needed, found.speed) == ("too large", 0, None)


def test_formats_that_nothing_runs_there() -> None:
    report = bitsmith.plan("llama-3-8b", devices=["m3-max-64"], formats=["gptq/int4", "q4_k_m"])
    assert row(report, "gptq/int4").verdicts[0].kind == "no runtime"
    usual = bitsmith.plan("llama-3-8b", devices=["m3-max-64"])
    assert all("/" not in each.weights.target for each in usual.rows)


def test_advice_takes_what_loses_least_of_what_fits() -> None:
    said = advise(bitsmith.plan("llama-3-8b", devices=["rtx-3060"]))
    assert said[0].startswith("rtx-3060: q8_0, which loses 0.0001 nats")
    small = " ".join(advise(bitsmith.plan("llama-2-13b", devices=["rtx-3080"], context=2048)))
    assert "8 bits" in small
    assert "does not multiply" not in small  # Ampere has INT4
    hopper = " ".join(advise(bitsmith.plan("llama-3-70b", devices=["h100"], formats=["gptq/int4"])))
    assert "does not multiply INT4" in hopper
    volta = " ".join(advise(bitsmith.plan("llama-3-8b", devices=["v100-32"])))
    assert "has no native BF16. For 16 bits, use F16" in volta


def test_a_larger_model_beside_a_smaller_one() -> None:
    said = " ".join(advise(bitsmith.plan("70B", devices=["a100-80"])))
    assert "70B at INT4 takes 35 GB, a 13B at 16 bits 26 GB" in said
    assert "published: perplexity" in said


def test_few_bits_beside_a_smaller_model_at_four() -> None:
    report = bitsmith.plan("llama-3-70b", devices=["rtx-4090"])
    room = row(report, "iq2_xs").verdicts[0]
    assert room.kind == "fits"
    assert row(report, "q2_k").verdicts[0].kind != "fits"
    first, second, *_ = said = advise(report)
    assert first.startswith("rtx-4090: iq2_xs, which loses 0.0")
    at_four = 8 * (room.room - room.memory.cache - room.memory.working) / row(report, "q4_k_m").bits_per_weight
    assert f"a model of {at_four / 1e9:.2g} B weights" in second
    assert any("Llama-3-8B in iq2_xs" in sentence and "perplexity 10.76 against 6.233" in sentence for sentence in said)
    larger = " ".join(advise(bitsmith.plan("llama-3-8b", devices=["rtx-4090"])))
    assert "So few bits" not in larger


def test_runtimes_by_hand() -> None:
    own = bitsmith.plan("llama-3-8b", devices=["cpu-ddr5"], memory="64GB", formats=["q4_k_m"])
    assert row(own, "q4_k_m").verdicts[0].runtime.name == "bitsmith"
    other = bitsmith.plan("llama-3-8b", devices=["cpu-ddr5"], memory="64GB", formats=["q4_k_m"], runtime="llama.cpp")
    assert row(other, "q4_k_m").verdicts[0].runtime.name == "llama.cpp"
    warned = bitsmith.plan("llama-3-8b", devices=["rtx-4090"], formats=["q4_k_m"], kv="fp8")
    assert "llama.cpp" in warned.warnings[0]


def test_windows_by_runtime() -> None:
    """llama.cpp keeps all tokens of a Mistral, and the window of a Gemma."""
    mistral = bitsmith.plan("mistral-7b-v0.1", devices=["rtx-4090"], context=32768, formats=["q4_k_m", "gptq/int4"])
    whole, window = row(mistral, "q4_k_m").verdicts[0], row(mistral, "gptq/int4").verdicts[0]
    assert whole.memory.cache == 8 * window.memory.cache
    gemma = bitsmith.plan("gemma-2-9b", devices=["rtx-4090"], context=8192, formats=["q4_k_m"])
    full = 21 * (4096 + 8192) * 2 * 8 * 256 * 2
    assert row(gemma, "q4_k_m").verdicts[0].memory.cache == full


WRONG = {
    "unknown device": ({"devices": ["rtx-4900"]}, "rtx-4090"),
    "size": ({"memory": "24 bananas"}, "24 bananas. is not a size"),
    "context of zero": ({"context": 0}, "context=0"),
    "context beyond": ({"context": 9000}, "8,192"),
    "batch": ({"batch": 0}, "batch=0"),
    "kv": ({"kv": "q7"}, 'kv="q7"'),
    "format": ({"formats": ["q4_z"]}, "q4_"),
    "runtime": ({"runtime": "exl2"}, 'runtime="exl2"'),
    "training": ({"training": ["rlhf"]}, r'training=\["rlhf"\]'),
    "cpu without memory": ({"devices": ["cpu-ddr4"]}, "memory="),
    "too many": ({"devices": ["99x rtx-4090"]}, "1 to 64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_calls(case: str) -> None:
    options, match = WRONG[case]
    with pytest.raises(UsageError, match=match):
        bitsmith.plan("llama-3-8b", **options)  # type: ignore[arg-type]


def test_gigabytes_and_gibibytes() -> None:
    decimal, binary = (bitsmith.plan("7B", memory=text, formats=["int4"]) for text in ("24GB", "24GiB"))
    assert decimal.device_sets[0].device.memory == 24 * 10**9
    assert binary.device_sets[0].device.memory == 24 * 2**30


def test_this_machine() -> None:
    report = bitsmith.plan("reference")
    device = report.device_sets[-1].device
    assert device.kind == "cpu"
    assert device.memory > 10**8
    assert 10**8 < device.bandwidth < 10**13
    assert replace(report.workload, context=1024) == report.workload


def test_what_is_ruined_is_not_advised() -> None:
    for memory in ("19GB", "24GB"):
        report = bitsmith.plan("70B", memory=memory)
        assert (row(report, "int2").verdicts[0].kind == "fits") is (memory == "24GB")
        assert "int2," not in " ".join(advise(report))
    assert "no good format fits" in advise(bitsmith.plan("70B", memory="19GB"))[0]
    mixed = bitsmith.plan("llama-3.2-1b", devices=["cpu-ddr5"], memory="16GB", formats=["native/int2", "q4_k_m"])
    assert advise(mixed)[0].startswith("cpu-ddr5: q4_k_m")
    unmeasured = bitsmith.plan(
        "llama-3-8b", devices=["cpu-ddr5"], memory="64GB", formats=["native/int4-tensor", "q3_k_m"]
    )
    assert "q3_k_m" in advise(unmeasured)[0]


def test_files_and_folders_that_nothing_runs_there(tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to="native/nf4", out=tmp_path / "nf4").out
    card, cpu = bitsmith.plan(made, devices=["h100", "cpu-ddr5"], memory="8GB").rows[0].verdicts
    assert (card.kind, cpu.kind) == ("no runtime", "fits")
    gptq = bitsmith.quantize("reference", to="gptq/int4", out=tmp_path / "gptq").out
    card, mac = bitsmith.plan(gptq, devices=["h100", "m3-max-36"]).rows[0].verdicts
    assert (card.runtime.name, card.kind, mac.kind) == ("vllm", "fits", "no runtime")
    own = bitsmith.plan("llama-3-8b", devices=["h100"], formats=["q4_k_m"], runtime="bitsmith")
    assert row(own, "q4_k_m").verdicts[0].kind == "no runtime"


def test_formats_that_quantize_does_not_make() -> None:
    mixtral = bitsmith.plan("mixtral-8x7b", devices=["h100"], formats=["q4_k_m"])
    assert row(mixtral, "q4_k_m").how == "exact tensors"


def test_batches_share_weights_and_read_their_own_caches() -> None:
    one, many = (
        row(bitsmith.plan("llama-3-8b", devices=["rtx-4090"], formats=["f16"], context=2048, batch=n), "f16")
        for n in (1, 16)
    )
    read, cache = one.weights.read_bytes(bitsmith.plan("llama-3-8b", devices=["rtx-4090"]).spec.network), 2**28
    assert one.verdicts[0].speed == pytest.approx(0.7 * 1008e9 / (read + cache), rel=1e-3)
    assert many.verdicts[0].speed == pytest.approx(0.7 * 1008e9 / (read + 16 * cache), rel=1e-3)


def test_layers_are_whole() -> None:
    """What cards hold is counted in layers: three of 1.37 of them each hold one."""
    report = bitsmith.plan("deepseek-v3", devices=["v100-32"], formats=["f16"])
    found = row(report, "f16").verdicts[0]
    network = report.spec.network
    per_card = int(found.device.usable // (max(row(report, "f16").weights.layer_bytes(network))))
    assert found.needed == 0 or found.needed >= network.layers / (per_card + 1)
    assert found.needed > found.total / found.device.usable


def test_in_use_is_never_less_than_what_fits() -> None:
    for devices in (["2x rtx-3090"], ["h100"], ["4x rtx-4090"]):
        for each in bitsmith.plan("llama-3-70b", devices=devices).rows:
            found = each.verdicts[0]
            if found.kind == "fits":
                assert found.total <= found.room
            elif found.count == 1 and found.kind != "no runtime":
                assert found.total > found.room


@pytest.mark.parametrize("name", ["2x m3-max-36", "2x this", "2x cpu-ddr5"])
def test_memory_that_is_not_one(name: str) -> None:
    with pytest.raises(UsageError, match="device "):
        bitsmith.plan("7B", devices=[name], memory="16GB")


def test_one_memory_for_several_cpus() -> None:
    report = bitsmith.plan("7B", devices=["cpu-ddr4", "cpu-ddr5"], memory="32GiB")
    assert [device_set.device.memory for device_set in report.device_sets] == [32 * 2**30] * 2


def test_numbers_without_end() -> None:
    many = 10**400
    for options in ({"context": many}, {"batch": many}, {"adapter_rank": many, "training": ["lora"]}):
        with pytest.raises(UsageError):
            bitsmith.plan("7B", devices=["h100"], **options)  # type: ignore[arg-type]
    for name in ("²x h100", "9" * 5000 + "x h100"):
        with pytest.raises(UsageError):
            bitsmith.plan("7B", devices=[name])
    huge = bitsmith.plan("7B", memory="9" * 400)
    assert huge.rows[0].verdicts[0].kind == "fits"


@pytest.mark.parametrize("kv", ["q8_0", "q4_0", "q5_1"])
@pytest.mark.parametrize(("head", "kept"), [(80, False), (64, True), (96, True)])
def test_llama_cpp_keeps_whole_blocks_of_keys(tmp_path: Path, head: int, kept: bool, kv: str) -> None:
    folder = make_folder(tmp_path / "m", hidden_size=4 * head, num_key_value_heads=4)
    report = bitsmith.plan(folder, memory="8GB", kv=kv, formats=["q8_0"], runtime="llama.cpp")
    found = row(report, "q8_0").verdicts[0]
    assert (found.kind, found.text) == (("fits", "fits") if kept else ("no cache", "no such cache"))
    assert any(f"a {kv} cache: its blocks of 32" in warning for warning in report.warnings) is not kept
    if not kept:
        assert 'give kv="f16"' in " ".join(advise(report))
    plain = bitsmith.plan(folder, memory="8GB", formats=["q8_0"], runtime="llama.cpp")
    assert row(plain, "q8_0").verdicts[0].kind == "fits"


def test_the_loss_is_that_of_the_types_that_are_made(tmp_path: Path) -> None:
    """Rows of 80 divide by no block: q2_k becomes f16 and loses nothing. Rows of 96 take q4_0 in part."""
    all_fallen = make_folder(tmp_path / "a", hidden_size=80, intermediate_size=80, num_key_value_heads=4)
    report = bitsmith.plan(all_fallen, memory="8GB", formats=["q2_k", "q4_0"])
    for name in ("q2_k", "q4_0"):
        loss = row(report, name).loss
        assert loss is not None
        assert loss.plain == 0.0
    other = make_folder(tmp_path / "b", hidden_size=96, intermediate_size=256, num_key_value_heads=4)
    assert row(bitsmith.plan(other, memory="8GB", formats=["q2_k"]), "q2_k").loss is None
    whole = make_folder(tmp_path / "c", hidden_size=256, intermediate_size=256, num_key_value_heads=4)
    assert row(bitsmith.plan(whole, memory="8GB", formats=["q2_k"]), "q2_k").loss is not None


def test_a_head_beside_a_tied_embedding_is_counted(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", tensors=weights(CONFIG), tie_word_embeddings=True)
    report = bitsmith.plan(folder, memory="8GB", formats=["f16"])
    assert any(tensor.name == "output.weight" for tensor in report.spec.network.tensors)


def test_what_quantize_cannot_make_is_not_advised(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m", architectures=["Llama9ForCausalLM"])
    report = bitsmith.plan(folder, devices=["this"])
    refused = [row for row in report.rows if "quantize cannot make it" in " ".join(row.weights.notes)]
    assert refused
    assert not any(row.advisable for row in refused)
    said = " ".join(advise(report))
    assert not any(f": {row.weights.target}" in said for row in refused)
