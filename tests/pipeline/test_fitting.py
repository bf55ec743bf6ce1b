"""Budgets of `quantize`: kept to the byte, repeated in no time, written as recipes, and refused where nothing fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration import need
from bitsmith.calibration.imatrix import read_imatrix
from bitsmith.calibration.sensitivity import calibrated, footprint, kept, measuring
from bitsmith.calibration.sensitivity.watched import WatchedModel
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import BitsmithError, FileError, ResourceError, UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline import fitting, front, quantization, sensitivities, token_time
from bitsmith.pipeline.result import Quantized
from bitsmith.pipeline.token_time import TokenTime
from bitsmith.recipe.allocation.units import Allocatable
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target
from bitsmith.system.core import core
from bitsmith.system.pressure import Room
from bitsmith.system.progress import silent
from tests.calibration.test_imatrix import write
from tests.cli.command import Command
from tests.tiny import make_folder

pytest.importorskip("highspy")

pytestmark = pytest.mark.usefixtures("few_windows")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


def held(result: Quantized) -> int:
    return sum(tensor.info.nbytes for tensor in result.plan.tensors)


def test_bits_are_never_exceeded_and_the_plan_is_the_file(model: Path, tmp_path: Path) -> None:
    planned = bitsmith.quantize(model, bits=5.5, out=tmp_path / "a.gguf", dry_run=True)
    made = bitsmith.quantize(model, bits=5.5, out=tmp_path / "a.gguf")
    assert held(made) * 8 <= 5.5 * made.plan.parameters
    assert made.size == planned.size == made.out.stat().st_size
    assert len({tensor.info.layout for tensor in made.plan.tensors}) > 2


@pytest.mark.parametrize("over", [0, 1, 997, 40_001])
def test_a_size_is_never_exceeded_by_a_byte(model: Path, tmp_path: Path, over: int) -> None:
    limit = 530_000 + over
    made = bitsmith.quantize(model, size=str(limit), out=tmp_path / "a.gguf")
    assert made.out.stat().st_size <= limit


def test_a_choice_that_is_over_gives_way_although_it_left_room(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is larger than that of the smallest types, by more than the room that the choice left."""
    best, over, taken = fitting.best, fitting.Room.over, list[int]()

    def with_room(units: Any, costs: Any, nbytes: int, *more: Any) -> list[int]:
        return best(units, costs, nbytes - nbytes % 4096, *more)

    def with_header(room: Any, chosen: list[int]) -> int:
        taken.append(sum(unit.choices[at].nbytes for unit, at in zip(room.open.units, chosen, strict=True)))
        return 32 if taken[-1] == taken[0] else over(room, chosen)

    assert bitsmith.quantize(model, size="540000", dry_run=True).size <= 540_000
    monkeypatch.setattr(fitting, "best", with_room)
    monkeypatch.setattr(fitting.Room, "over", with_header)
    monkeypatch.setattr(fitting.Room, "_over_whole", lambda room: 1)
    assert bitsmith.quantize(model, size="540000", dry_run=True).size <= 540_000
    assert len(taken) == 2


def test_a_second_budget_measures_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bitsmith.quantize(model, bits=6, dry_run=True)

    def fail(*words: object, **named: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(measuring, "WatchedModel", fail)
    assert bitsmith.quantize(model, bits=6.05, dry_run=True).size > 0


def test_figures_of_another_program_are_not_used(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs are measured again where the program changed, and kept apart from those of the other."""
    bitsmith.quantize(model, bits=6, dry_run=True)
    loaded: list[object] = []

    class Counted(WatchedModel):
        def __init__(self, *words: Any, **named: Any) -> None:
            loaded.append(words)
            super().__init__(*words, **named)

    monkeypatch.setattr(measuring, "WatchedModel", Counted)
    bitsmith.quantize(model, bits=6, dry_run=True)
    assert not loaded
    with pytest.MonkeyPatch.context() as other:
        other.setattr(kept, "_code_sha256", lambda package: "other code")
        bitsmith.quantize(model, bits=6, dry_run=True)
        assert len(loaded) == 1
    bitsmith.quantize(model, bits=6, dry_run=True)
    assert len(loaded) == 1


def test_a_stopped_search_goes_on_with_what_it_had_measured(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words: dict[str, Any] = {"bits": 6, "dry_run": True, "seed": 6}
    measured: list[str] = []
    costs, changes = measuring.Measuring.costs, measuring.Measuring.changes

    def stopped(self: measuring.Measuring, *given: Any) -> list[np.ndarray]:
        measured.append("changes")
        if measured.count("changes") == 1:
            raise KeyboardInterrupt
        return changes(self, *given)

    def counted(self: measuring.Measuring) -> list[np.ndarray]:
        measured.append("costs")
        return costs(self)

    monkeypatch.setattr(measuring.Measuring, "costs", counted)
    monkeypatch.setattr(measuring.Measuring, "changes", stopped)
    with pytest.raises(KeyboardInterrupt):
        bitsmith.quantize(model, **words)
    assert bitsmith.quantize(model, **words).size > 0
    assert measured == ["costs", "changes", "changes"]


def _measured(model: Path, *rules: str, target: str = "q8_0", **words: Any) -> sensitivities.Sensitivities:
    open_ = Allocatable(open_checkpoint(model), Target("gguf", target), PlanOptions(filename="x.gguf", rules=rules))
    return sensitivities.sensitivities_of(open_, bitsmith.QuantizeConfig(**words), silent)


def test_types_that_a_rule_gives_are_part_of_every_loss(model: Path) -> None:
    """With all other matrices in 16 bits, the loss is that of the given types."""
    free, given = _measured(model), _measured(model, "ffn_down=q4_0", "attn_k=f16")
    widest = [[len(unit.choices) - 1 for unit in each.units] for each in (free, given)]
    budgets = [sum(unit.choices[-1].nbytes for unit in each.units) for each in (free, given)]
    assert free.true(widest[0]) == free.total(widest[0]) == free.expected(widest[0], budgets[0]) == 0
    true = given.true(widest[1])
    assert true > 1e-5
    assert 0.5 < given.total(widest[1]) / true < 2
    assert given.expected(widest[1], budgets[1]) == pytest.approx(true, rel=0.05)
    assert given.expected([0] * len(given.units), 0) > given.expected(widest[1], budgets[1])


def test_kept_costs_tell_given_types_apart(model: Path) -> None:
    rules = ((), ("ffn_down=q4_0",), ("ffn_down=q5_0",), ("ffn_down=bf16",))
    found = [_measured(model, *each)._kept.path for each in rules]
    assert len(set(found)) == len(found)


def test_a_matrix_with_one_type_only_is_rounded(tmp_path: Path) -> None:
    """Rows of 48: no type of blocks fits them, so that embedding, head and others are stored as F16."""
    folder = make_folder(tmp_path / "m", hidden_size=96, intermediate_size=48, num_attention_heads=2)
    open_ = Allocatable(open_checkpoint(folder), Target("gguf", "q8_0"), PlanOptions(filename="x.gguf", rules=()))
    fixed = [name for unit in open_.fixed for name in unit.names]
    kept = {tensor.info.name for tensor in open_.base.tensors if tensor.info.layout == tensor.source_layout}
    assert fixed == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert not kept & set(fixed)


def test_rows_that_are_sampled_depend_on_memory_given_not_on_memory_free(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs of fewer rows are kept apart, and what is free does not change the share."""
    paths = []
    for nbytes in (1 << 34, 1 << 38):
        for module in (need, footprint, calibrated):
            monkeypatch.setattr(module, "available_memory", lambda nbytes=nbytes: nbytes, raising=False)
        paths += [_measured(model, seed=9, memory=memory)._kept.path for memory in (None, "20kB", "8GB")]
    assert paths[:3] == paths[3:]
    assert paths[0] == paths[2] != paths[1]
    assert footprint.row_share(1 << 20, None) == 1.0
    assert footprint.row_share(1 << 20, 1 << 18) == 0.25


def test_a_search_that_does_not_fit_memory_is_refused_with_what_would_fit(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"bits": 6, "dry_run": True, "seed": 5}

    def free(nbytes: int) -> None:
        for module in (need, footprint):
            monkeypatch.setattr(module, "rooms", lambda: (Room(nbytes, "free"),))

    free(1 << 20)
    with pytest.raises(ResourceError, match=r"choosing types: this run takes about .* only 1\.05 MB are free.*force"):
        bitsmith.quantize(model, **words)
    search = _search(model)
    least, most = (search.memory(limit) + footprint.torch_memory() for limit in (0, 1 << 40))
    assert least < most
    free((least + most) // 2)
    with pytest.raises(ResourceError, match=r"memory=\S*\d+MB\S* would fit") as found:
        bitsmith.quantize(model, **words)
    free(most * 2)
    assert bitsmith.quantize(model, **words).size > 0
    assert "No options" not in str(found.value)


def _search(model: Path) -> footprint.Search:
    open_ = Allocatable(open_checkpoint(model), Target("gguf", "q5_k_m"), PlanOptions(filename="x.gguf"))
    context = open_.checkpoint.config.context
    return footprint.Search(open_.checkpoint.config, open_.units, 8, 4, min(128, context), anchors=True, gptq=False)


@pytest.mark.parametrize("to", ["native", "compressed", "awq", "bnb", "mlx", "q4_0"])
def test_other_containers_keep_the_budget(model: Path, tmp_path: Path, to: str) -> None:
    made = bitsmith.quantize(model, to=to, bits=15, out=tmp_path / "out")
    assert held(made) * 8 <= 15 * made.plan.parameters


def test_mlx_has_a_width_for_each_module_and_decodes_as_in_files_of_one_width(model: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(model, to="mlx", bits=6.5, out=tmp_path / "mixed")
    said = json.loads((made.out / "config.json").read_text())["quantization"]
    source = SafetensorsSource(made.out)
    layouts = {name: info.layout for name, info in source.tensors.items() if info.layout.startswith("mlx/")}
    assert len(set(layouts.values())) > 2
    for name, layout in layouts.items():
        own = {**said, **said.get(name.removesuffix(".weight"), {})}
        bits = f"{own['bits']}bit-g{own['group_size']}" if own["mode"] == "affine" else own["mode"]
        assert layout.removeprefix("mlx/") == bits
    for layout in set(layouts.values()):
        name = layout.removeprefix("mlx/")
        alone = bitsmith.quantize(model, to=f"mlx/{name}", rules=[f"embed_tokens|lm_head={name}"], out=tmp_path / name)
        same = SafetensorsSource(alone.out)
        for tensor in (each for each, found in layouts.items() if found == layout):
            np.testing.assert_array_equal(source.rows(tensor), same.rows(tensor), err_msg=tensor)
    assert not bitsmith.inspect(made.out, verify=True).problems


def test_tokens_per_second_keep_both_limits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller types are slower here, so that the speed asks for more bytes, and the budget for fewer."""

    def time(open_: Allocatable, config: bitsmith.QuantizeConfig, report: object) -> TokenTime:
        units = tuple(np.array([1e-6 * 1e5 / choice.nbytes for choice in unit.choices]) for unit in open_.units)
        return TokenTime(units, 1e-6, 3)

    monkeypatch.setattr(token_time, "token_time", time)

    def took(result: Quantized) -> float:
        sizes = [t.info.nbytes for t in result.plan.tensors if t.info.rows > 1]
        return 1e-6 + sum(1e-6 * 1e5 / size for size in sizes)

    plain = bitsmith.quantize(model, bits=6.5, dry_run=True)
    rate = 1.03 / took(plain)
    quick = bitsmith.quantize(model, bits=6.5, tokens_per_second=rate, dry_run=True)
    assert held(quick) * 8 <= 6.5 * quick.plan.parameters
    assert 1 / took(quick) >= rate > 1 / took(plain)
    assert any("tokens a second on this machine with 3 threads" in note for note in quick.told)
    with pytest.raises(UsageError, match=r"the fastest types within the budget reach about \d"):
        bitsmith.quantize(model, bits=6.5, tokens_per_second=1e7, dry_run=True)


@pytest.mark.skipif(core() is None, reason="products are those of the core")
def test_the_time_of_a_token_is_measured_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ = Allocatable(open_checkpoint(model), Target("gguf", "q4_0"), PlanOptions(filename="x.gguf"))
    config = bitsmith.QuantizeConfig(threads=1)
    found = token_time.token_time(open_, config)
    assert all(
        (each > 0).all() for unit, each in zip(open_.units, found.units, strict=True) if unit.names[0][:5] != "token"
    )
    assert 0 < found.fixed < 1
    monkeypatch.setattr(token_time, "measure_speed", None)  # nothing is measured again
    again = token_time.token_time(open_, config)
    assert again.fixed == found.fixed
    assert all((a == b).all() for a, b in zip(again.units, found.units, strict=True))


def test_a_shape_has_no_losses(command: Command) -> None:
    for name in ("llama-3-8b", "7B"):
        found = command("plan", name, "--fit", "24GB")
        assert found.code == 2
        assert f"{name} is a shape without weights" in found.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"fit": "0GB"}, "no model fits no memory"),
        ({"bits": 1.0}, r"bits=1: nothing so small can be written: the smallest file has \d\.\d+ bits"),
        ({"size": "10kB"}, "the smallest output has"),
        ({"fit": "no-such-card"}, "no device that bitsmith knows"),
        ({"fit": "12MB", "context": 256}, "without any weight; give a smaller context"),
        ({"bits": 4.0, "size": "1MB"}, "different budgets"),
        ({"bits": -1.0}, "above zero"),
        ({"bits": 5.0, "pure": True}, "give one"),
        ({"kv": "q8_0", "to": "q4_0"}, "there is no"),
        ({"fit": "24GB", "context": 10_000}, "at most"),
        ({"fit": "24GB", "kv": "q9"}, "unknown"),
        ({"bits": 8.0, "tokens_per_second": 0.0}, "above zero"),
        ({"tokens_per_second": 20.0, "to": "q4_0"}, "goes with a budget"),
    ],
)
def test_budgets_that_cannot_be(model: Path, words: dict, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=said):
        bitsmith.quantize(model, dry_run=True, **words)


def test_more_than_sixteen_bits_gives_the_largest_types(model: Path) -> None:
    assert bitsmith.quantize(model, bits=1e308, dry_run=True).size
    found = bitsmith.quantize(model, bits=17, dry_run=True)
    assert any("more than the largest types" in note for note in found.told)
    assert {t.info.layout for t in found.plan.tensors} == {"bf16", "f32"}


@pytest.mark.parametrize("to", ["compressed", "mlx"])
def test_beyond_sixteen_bits_a_container_of_codes_gives_way_to_floats(model: Path, to: str) -> None:
    found = bitsmith.quantize(model, to=to, bits=17, dry_run=True)
    assert str(found.target) == "native/bf16"
    assert any(f"{to} holds codes: this is native/bf16" in note for note in found.told)
    assert {tensor.info.layout for tensor in found.plan.tensors} == {"bf16"}


def test_floats_in_place_of_codes_keep_the_budget(model: Path) -> None:
    whole = bitsmith.quantize(model, to="mlx", bits=17, dry_run=True).size
    found = bitsmith.quantize(model, to="mlx", size=str(whole - 1), dry_run=True)
    assert found.size < whole
    assert str(found.target) != "native/bf16"
    assert str(bitsmith.quantize(model, to="mlx", size=str(whole), dry_run=True).target) == "native/bf16"


def test_rules_that_leave_codes_keep_the_container(model: Path, tmp_path: Path) -> None:
    found = bitsmith.quantize(model, to="mlx", bits=20, rules=["mlp=8bit"], dry_run=True)
    assert found.target.container == "mlx"
    layouts = {tensor.info.name: tensor.info.layout for tensor in found.plan.tensors}
    coded = {name for name, layout in layouts.items() if layout.startswith("mlx")}
    assert coded == {name for name in layouts if ".mlp." in name}
    bitsmith.quantize(model, to="mlx", bits=20, recipe=tmp_path / "r.yaml", dry_run=True)
    assert str(bitsmith.quantize(model, recipe=tmp_path / "r.yaml", dry_run=True).target) == "native/bf16"


def test_a_calibration_counts_although_the_budget_has_room_for_floats(model: Path) -> None:
    """The front of a model that fits its device is that of the calibrated rounding."""
    config = bitsmith.QuantizeConfig(fit="24GB", calibration="default", method="gptq")
    target = Target("gguf", "bf16")
    assert quantization.calibration_of(open_checkpoint(model), [target], config, silent)[0] is not None
    found = bitsmith.quantize(model, fit="24GB", calibration="default", method="gptq", dry_run=True)
    assert {t.info.layout for t in found.plan.tensors} == {"bf16", "f32"}


def test_types_that_need_importance_are_left_out_where_a_file_has_none(model: Path, tmp_path: Path) -> None:
    bitsmith.imatrix(model, out=tmp_path / "im.gguf", calibration_tokens=256, calibration_context=64)
    known = read_imatrix(tmp_path / "im.gguf")
    name = "blk.1.ffn_down.weight"
    write(
        replace(known, entries={at: each for at, each in known.entries.items() if at != name}), tmp_path / "part.gguf"
    )
    found = bitsmith.quantize(model, bits=5.5, calibration=str(tmp_path / "part.gguf"), dry_run=True)
    assert found.bits_per_weight <= 5.5


def test_double_quantization_goes_with_a_budget(model: Path) -> None:
    found = bitsmith.quantize(model, to="bnb", bits=15.5, double_quant=True, dry_run=True)
    assert str(found.target) == "bnb/nf4-dq"
    assert {t.info.layout for t in found.plan.tensors if t.format is not None} == {"bnb/nf4-dq"}


def test_a_model_without_a_choice(tmp_path: Path) -> None:
    small = make_folder(tmp_path / "m", hidden_size=24, intermediate_size=40, num_attention_heads=2)
    with pytest.raises(UsageError, match="nothing to choose"):
        bitsmith.quantize(small, bits=8, dry_run=True)


def test_several_targets_or_a_missing_recipe(model: Path, tmp_path: Path) -> None:
    config = bitsmith.QuantizeConfig(bits=5.0)
    with pytest.raises(UsageError, match="several times"):
        bitsmith.quantize_each(model, ["q4_0", "q8_0"], config, report=silent)
    with pytest.raises(FileError, match="cannot be read"):
        bitsmith.quantize(model, recipe=tmp_path / "none.yaml")


def test_a_damaged_cache_is_measured_again(model: Path, tmp_path: Path) -> None:
    import os

    first = bitsmith.quantize(model, bits=5.5, dry_run=True)
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "bitsmith" / "sensitivity"
    for path in folder.glob("*.json"):
        path.write_text("{")
    assert bitsmith.quantize(model, bits=5.5, dry_run=True).size == first.size


def test_fit_counts_cache_and_runtime(model: Path, command: Command) -> None:
    found = command("quantize", model, "--fit", "24GB", "--dry-run")
    assert found.code == 0
    assert "more than the largest types" in found.err


def test_the_front_has_mixes_beside_it(model: Path, command: Command, tmp_path: Path) -> None:
    found = command("plan", model, "--fit", "24GB", "--json")
    assert found.code == 0, found.err
    shown = json.loads(found.out)
    losses = [each["loss"] for each in shown["points"]]
    assert losses == sorted(losses, reverse=True)
    assert {each["name"] for each in shown["mixes"]} >= {"q8_0"}
    assert shown["chosen"] == shown["points"][-1]
    assert losses[-1] == 0
    assert shown["chosen"]["nbytes"] == bitsmith.quantize(model, fit="24GB", dry_run=True).size
    assert command("plan", model, "--fit", "24GB", "--memory", "8GB").code == 2
    assert "goes with" in command("plan", model, "--rule", "attn_v=q8_0").err


@pytest.mark.parametrize(
    ("to", "more"),
    [
        ("gguf", ("--rule", "ffn_down=q4_0")),
        ("gguf", ("--method", "nearest", "--calibration", "default", "--calibration-tokens", "2048")),
        ("compressed", ()),
    ],
)
def test_the_front_shows_what_quantize_makes(
    model: Path, command: Command, tmp_path: Path, to: str, more: tuple[str, ...]
) -> None:
    """The budget is a point of it, and so are the sizes around it: the same bytes, with the same expected loss."""
    given = ("--fit", "343.8MB" if to == "gguf" else "1.05GB", "--context", 64, "--json", *more)
    found = command("plan", model, "--format", to, *given)
    assert found.code == 0, found.err
    made = json.loads(command("quantize", model, "--to", to, "-o", tmp_path / "x.gguf", "--dry-run", *given).out)
    shown = json.loads(found.out)
    own = shown["chosen"]
    assert own in shown["points"]
    assert own["nbytes"] == made["bytes"]
    assert made["expected_kld"] == (own["loss"] if to == "gguf" else None)
    assert not any(each["fits"] for each in shown["points"] if each["nbytes"] > own["nbytes"])
    middle = shown["points"][len(shown["points"]) // 2]
    size = ("--size", str(middle["nbytes"]), "--dry-run", "--json", *more)
    made = json.loads(command("quantize", model, "--to", to, "-o", tmp_path / "x.gguf", *size).out)
    assert made["bytes"] <= middle["nbytes"]
    assert made["expected_kld"] == pytest.approx(middle["loss"], rel=0.1)


def test_a_front_is_refused_before_its_search(
    model: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that cannot be written; memory that is not free, without options that `plan` lacks."""
    with monkeypatch.context() as patch:
        patch.setattr(front, "sensitivities_of", lambda *_, **__: pytest.fail("searched"))
        for name, said in (("a.jpg", "a name that ends in"), ("none/a.png", "there is no folder")):
            found = command("plan", model, "--fit", "24GB", "--plot", tmp_path / name)
            assert found.code != 0
            assert said in " ".join(found.err.split())
    for module in (need, footprint):
        monkeypatch.setattr(module, "rooms", lambda: (Room(1 << 20, "free"),))
    found = command("plan", model, "--fit", "343.8MB", "--context", 64, "--seed", 7)
    assert found.code == 1
    assert "take a larger machine" in " ".join(found.err.split())
    assert "--force" not in found.err


def test_the_result_has_the_expected_loss_as_a_number(model: Path) -> None:
    found = [
        bitsmith.quantize(model, dry_run=True, **words).to_dict()["expected_kld"]
        for words in ({"bits": 6.5}, {"bits": 8.5})
    ]
    assert found[0] > found[1] > 0
    for words in ({"bits": 17}, {"to": "q8_0"}):
        assert bitsmith.quantize(model, dry_run=True, **words).to_dict()["expected_kld"] is None


def test_a_choice_that_is_far_over_ends_with_the_smallest_types(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = fitting.Room.over

    def far(room: fitting.Room, chosen: list[int]) -> int:
        return 1 << 40 if any(chosen) else over(room, chosen)

    monkeypatch.setattr(fitting.Room, "over", far)
    found = bitsmith.quantize(model, size="540000", dry_run=True)
    assert found.size < bitsmith.quantize(model, to="q8_0", dry_run=True).size


def test_errors_of_a_calibrated_budget(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BitsmithError):
        bitsmith.quantize(model, bits=5.0, method="gptq", calibration=tmp_path / "none.txt", dry_run=True)
