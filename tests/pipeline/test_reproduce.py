"""From a recipe to the command: every option that decides the bytes, and nothing that a damaged recipe could break."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from bitsmith.pipeline.reproduce import command_of, commands_of
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.recipe import PlanOptions, Recipe
from bitsmith.recipe.target import Target
from bitsmith.reference.texts import built_in_name

RECORD = CalibrationRecord("my text.txt", "0" * 64, 4096, 512, 7)
GPTQ = Target("gptq", "int4")


def made(recipe: Recipe) -> str:
    return command_of(json.loads(recipe.to_json()))


def test_every_option_of_a_recipe_is_in_the_command() -> None:
    options = PlanOptions(
        pure=True,
        rules=("a b=f16", "c=int8"),
        pre="qwen2",
        max_shard_bytes=5000,
        requantize=True,
        keep=("lm_head",),
        group_size=-1,
        symmetric=False,
    )
    recipe = Recipe(GPTQ, options, "awq+gptq", "high", RECORD, "cuda:1", source="My model")
    assert shlex.split(made(recipe)) == [
        *("bitsmith", "quantize", "My model", "--to", "gptq/int4", "--method", "awq+gptq", "--effort", "high"),
        *("--pre", "qwen2", "--group-size", "-1", "--device", "cuda", "--max-shard-size", "5000"),
        *("--pure", "--requantize", "--rule", "a b=f16", "--rule", "c=int8", "--keep", "lm_head", "--asym"),
        *("--calibration", "my text.txt", "--calibration-tokens", "4096", "--calibration-context", "512"),
        *("--seed", "7"),
    ]


@pytest.mark.parametrize(
    ("source", "seed", "words"),
    [
        (built_in_name(), 0, "--calibration default --calibration-tokens 4096 --calibration-context 512 --seed 0"),
        ("m's own text", 1, "--calibration self --calibration-tokens 4096 --calibration-context 512 --seed 1"),
        ("imatrix.gguf", None, "--calibration imatrix.gguf"),
    ],
)
def test_calibrations(source: str, seed: int | None, words: str) -> None:
    record = CalibrationRecord(source, "0" * 64, 4096, 512, seed)
    recipe = Recipe(Target("gguf", "q4_0"), calibration=record, source="m")
    assert made(recipe) == f"bitsmith quantize m --to gguf/q4_0 --method nearest {words}"


def test_a_recipe_without_a_source_names_a_placeholder() -> None:
    assert made(Recipe(Target("gguf", "q8_0"))) == "bitsmith quantize MODEL --to gguf/q8_0"


@pytest.mark.parametrize(
    "recipe", [{}, {"to": 3, "rules": "x", "calibration": {}, "keep": [1]}, {"source_recipe": [1], "symmetric": "yes"}]
)
def test_damaged_recipes(recipe: dict[str, Any]) -> None:
    assert commands_of(recipe)[0].startswith("bitsmith quantize MODEL")


def test_a_chain_without_end_is_cut() -> None:
    recipe: dict[str, Any] = {"to": "gguf/q4_0"}
    for _ in range(5000):
        recipe = {"command": "convert", "to": "gguf/same", "source_recipe": recipe}
    assert len(commands_of(recipe)) == 100
