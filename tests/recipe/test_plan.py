"""Targets and sizes as the user writes them, and the line that says what was chosen."""

import json

import pytest

from bitsmith.errors import UsageError
from bitsmith.recipe.recipe import PlanOptions, Recipe
from bitsmith.recipe.target import Target
from bitsmith.system.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("q4_k_m", Target("gguf", "q4_k_m")),
        (" GGUF/Q4_K_M ", Target("gguf", "q4_k_m")),
        ("native/int4-g64", Target("native", "int4-g64")),
    ],
)
def test_a_target(text: str, expected: Target) -> None:
    assert Target.parse(text) == expected
    assert Target.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("exl2/int4", "unknown container 'exl2'; known: gguf"), ("gguf/", "such as gguf/q4_k_m")],
)
def test_a_target_that_is_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Target.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1000000", 10**6), ("2GB", 2 * 10**9), ("512MiB", 512 << 20), ("1.5 kb", 1500), ("1TiB", 1 << 40)],
)
def test_a_size(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "2XB", "-1GB", "0", "0.0001kB", "1e9"])
def test_a_size_that_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_the_recipe_is_one_line_that_names_every_choice() -> None:
    options = PlanOptions(rules=("ffn=q6_k",), pure=True, pre="qwen2", filename="x.gguf")
    recipe = Recipe(Target("gguf", "q4_k"), options).to_json()
    assert "\n" not in recipe
    chosen = {"to": "gguf/q4_k", "method": "nearest", "pure": True, "rules": ["ffn=q6_k"], "pre": "qwen2"}
    chosen["recovered_tensors"] = 0
    assert json.loads(recipe) == chosen
