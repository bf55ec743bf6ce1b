"""Which types a container allows, the exact solver, and the rules that say what was chosen."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from bitsmith.errors import UsageError
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.recipe.allocation import solver
from bitsmith.recipe.allocation.rules import rules_of
from bitsmith.recipe.allocation.search import anchor, largest, smallest
from bitsmith.recipe.allocation.units import Allocatable
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.recipe.target import Target
from tests.families import folder_of
from tests.tiny import make_folder


def open_types(model: str | Path, target: str, **options: object) -> Allocatable:
    given = PlanOptions(filename="x.gguf", **options)  # type: ignore[arg-type]
    return Allocatable(open_checkpoint(model), Target.parse(target), given)


def test_gguf_offers_every_type_that_is_written_and_the_head() -> None:
    found = {unit.names[0]: unit for unit in open_types("reference", "gguf/q4_k_m").units}
    assert len(found) == 58
    labels = [choice.label for choice in found["output.weight"].choices]
    assert {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "q8_0", "iq4_xs", "bf16"} <= set(labels)
    assert "f16" not in labels  # of the same size as the source's own type
    sizes = [choice.nbytes for choice in found["token_embd.weight"].choices]
    assert sizes == sorted(sizes)


def test_older_types_are_left_out_where_others_fit_unless_speed_is_asked_for() -> None:
    plain = open_types("reference", "gguf/q4_k_m")
    quick = Allocatable(plain.checkpoint, plain.target, PlanOptions(filename="x.gguf"), for_speed=True)
    labels = [{choice.label for unit in each.units for choice in unit.choices} for each in (plain, quick)]
    assert labels[1] - labels[0] == {"q4_0", "q4_1", "q5_0", "q5_1"}
    assert [unit.names for unit in plain.units] == [unit.names for unit in quick.units]


def test_rows_that_a_block_does_not_divide_have_no_such_type(tmp_path: Path) -> None:
    found = open_types(make_folder(tmp_path / "m"), "gguf/q4_k_m")
    labels = {choice.label for unit in found.units for choice in unit.choices}
    assert {"q4_0", "q5_0", "q8_0", "iq4_nl", "bf16"} <= labels
    assert not labels & {"q2_k", "q4_k", "iq4_xs"}


@pytest.mark.parametrize("container", ["compressed/w4a16", "gptq/int4", "awq/int4", "bnb/nf4"])
def test_what_a_runtime_fuses_is_one_unit(container: str) -> None:
    found = open_types("reference", container)
    names = {tuple(sorted(name.rpartition(".weight")[0].rpartition(".")[2] for name in u.names)) for u in found.units}
    assert names == {("k_proj", "q_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)}
    assert all(choice.nbytes > 0 for unit in found.units for choice in unit.choices)


@pytest.mark.parametrize("container", ["compressed/w4a16", "gptq/int4"])
def test_shared_experts_and_delta_nets_are_fused_too(tmp_path: Path, container: str) -> None:
    model = folder_of("qwen3_5_moe", tmp_path / "m")[0]
    units = [{name.rpartition(".weight")[0] for name in unit.names} for unit in open_types(model, container).units]
    for pair in (("shared_expert.gate_proj", "shared_expert.up_proj"), ("in_proj_qkv", "in_proj_z")):
        found = [{name.split(".", 4)[-1] for name in unit} for unit in units if any(pair[0] in name for name in unit)]
        assert found, pair
        assert all(len(unit) == 2 and any(pair[1] in name for name in unit) for unit in found), pair


def test_experts_of_the_model_are_alike_where_runtimes_fuse_them(tmp_path: Path) -> None:
    """transformers has one scheme for the experts of all layers."""
    model = folder_of("mixtral", tmp_path / "m")[0]
    units = [unit for unit in open_types(model, "compressed/w4a16").units if any(".experts." in n for n in unit.names)]
    assert len(units) == 1
    assert len({name.split(".")[2] for name in units[0].names}) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"rules": ("q_proj=w8a16",)}, r"q_proj.weight: w8a16, .*k_proj.weight: open.*name all of them"),
        ({"keep": ("v_proj",)}, r"v_proj.weight: 16 bits"),
    ],
)
def test_rules_that_divide_a_fused_matrix_are_refused(words: dict[str, tuple[str, ...]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        open_types("reference", "compressed/w4a16", **words)
    whole = open_types("reference", "compressed/w4a16", rules=("[qkv]_proj=w8a16",))
    assert not any("q_proj" in name for unit in whole.units for name in unit.names)
    open_types("reference", "mlx/4bit", rules=("q_proj=8bit",))  # each module has its own


def test_experts_of_a_layer_are_alike(tmp_path: Path) -> None:
    model = folder_of("mixtral", tmp_path / "m")[0]
    found = open_types(model, "native/int4")
    experts = [unit for unit in found.units if any("experts" in name for name in unit.names)]
    assert experts
    assert all(len(unit.names) > 1 for unit in experts)
    chosen = [unit.choices[n % len(unit.choices)] for n, unit in enumerate(found.units)]
    _check_rules(found, chosen)


@pytest.mark.parametrize("target", ["gguf/q4_k_m", "native/int4", "compressed/w4a16", "gptq/int4", "awq/int4"])
def test_rules_give_the_chosen_types_to_the_byte(target: str) -> None:
    found = open_types("reference", target)
    random = np.random.default_rng(0)
    chosen = [unit.choices[random.integers(len(unit.choices))] for unit in found.units]
    _check_rules(found, chosen)


def _check_rules(found: Allocatable, chosen: list) -> None:  # type: ignore[type-arg]
    planned = {t.info.name: t.info for t in found.assignment(rules_of(chosen)).tensors}
    wanted = [tensor.info for choice in chosen for tensor in choice.tensors]
    assert all(planned[info.name].nbytes == info.nbytes for info in wanted)
    held = sum(info.nbytes for info in planned.values())
    assert held == found.fixed_bytes() + sum(choice.nbytes for choice in chosen)


def test_rules_of_the_user_come_first() -> None:
    found = open_types("reference", "gguf/q4_k_m", rules=("attn_v=q8_0",))
    assert not [name for unit in found.units for name in unit.names if "attn_v" in name]


def test_the_solver_finds_the_least_cost() -> None:
    pytest.importorskip("highspy")
    random = np.random.default_rng(1)
    costs = [random.random(3) for _ in range(6)]
    sizes = [random.integers(1, 9, 3) * 32 for _ in range(6)]
    for budget in (6 * 32 * 2, 6 * 32 * 4, 6 * 32 * 6):
        try:
            chosen = solver.solve(costs, sizes, budget)
        except ValueError:
            assert sum(int(size.min()) for size in sizes) > budget
            continue
        every = itertools.product(range(3), repeat=6)
        fits = [each for each in every if sum(s[i] for s, i in zip(sizes, each, strict=True)) <= budget]
        best = min(sum(c[i] for c, i in zip(costs, each, strict=True)) for each in fits)
        assert sum(s[i] for s, i in zip(sizes, chosen, strict=True)) <= budget
        assert sum(c[i] for c, i in zip(costs, chosen, strict=True)) == pytest.approx(best, rel=1e-4)


def test_without_the_solver_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'bitsmith\[fit\]'"):
        solver.solve([np.array([1.0, 0.0])], [np.array([1, 2])], 2)


def test_a_solver_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "find_spec", lambda name: object())
    monkeypatch.setattr(solver, "_TASK", Path("/no/such/program.py"))
    with pytest.raises(UsageError, match="HiGHS found no choice"):
        solver.solve([np.array([1.0, 0.0])], [np.array([1, 2])], 2)


def test_anchors_stand_on_a_fixed_scale() -> None:
    units = open_types("reference", "gguf/q4_k_m").units
    low, high = smallest(units), largest(units)
    assert anchor(units, low) == low
    assert anchor(units, 10 * high) == high
    near = {anchor(units, int(2 * low * step)) for step in (0.97, 1.0, 1.03)}
    assert len(near) == 1


def test_the_solver_keeps_a_second_limit() -> None:
    random = np.random.default_rng(3)
    for _ in range(5):
        costs = [random.random(4) for _ in range(5)]
        sizes = [random.integers(1, 50, 4) for _ in range(5)]
        seconds = [random.random(4) for _ in range(5)]
        budget, limit = 120, 2.0
        legal = [
            each
            for each in itertools.product(range(4), repeat=5)
            if sum(size[at] for size, at in zip(sizes, each, strict=True)) <= budget
            and sum(own[at] for own, at in zip(seconds, each, strict=True)) <= limit
        ]
        least = min(sum(cost[at] for cost, at in zip(costs, each, strict=True)) for each in legal)
        found = solver.solve(costs, sizes, budget, solver.Time(seconds, limit))
        assert tuple(found) in legal
        assert sum(cost[at] for cost, at in zip(costs, found, strict=True)) == pytest.approx(least, rel=1e-4)
    with pytest.raises(ValueError, match="both limits"):
        solver.solve(costs, sizes, budget, solver.Time(seconds, 0.05))


@pytest.mark.parametrize(
    ("statuses", "said"),
    [(("kInfeasible", "kUnboundedOrInfeasible"), ValueError), (("kTimeLimit", "kUnknown", "kSolveError"), UsageError)],
)
def test_an_end_without_a_solution_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, statuses: tuple[str, ...], said: type[Exception]
) -> None:
    """HiGHS that ends so, with columns of zeros that are no solution."""
    pytest.importorskip("highspy")
    for status in statuses:
        task = tmp_path / f"{status}.py"
        task.write_text(
            "import highspy\n"
            "class Ended(highspy.Highs):\n"
            "    def run(self): return highspy.HighsStatus.kWarning\n"
            f"    def getModelStatus(self): return highspy.HighsModelStatus.{status}\n"
            "    def getInfo(self): return highspy.HighsInfo()\n"
            "    def getSolution(self):\n"
            "        found = highspy.HighsSolution()\n"
            "        found.col_value = [0.0, 0.0, 0.0, 0.0]\n"
            "        return found\n"
            "highspy.Highs = Ended\n"
            f"import runpy; runpy.run_path({str(solver._TASK)!r}, run_name='__main__')\n"
        )
        with monkeypatch.context() as patch:
            patch.setattr(solver, "_TASK", task)
            with pytest.raises(said, match="no choice"):
                solver.solve([np.array([1.0, 0.0])] * 2, [np.array([1, 2])] * 2, 3)
