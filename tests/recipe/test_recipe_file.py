"""Recipe files: what is written is read again, and what is no recipe is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitsmith.errors import FileError
from bitsmith.recipe.recipe_file import RecipeFile


def test_a_recipe_is_read_as_it_was_written(tmp_path: Path) -> None:
    rules = (r"^blk\.(0|1)\.attn_q\.weight$=q4_k", "^output\\.weight$=q6_k")
    recipe = RecipeFile("gguf/q4_k_m", rules, 64, True, {"model": "m", "budget": "bits=4.25"}, (r"layers\.0\.",))
    path = tmp_path / "r.yaml"
    path.write_text(recipe.text())
    assert RecipeFile.read(path) == recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n", "this is no recipe"),
        ("to: gguf/q4_k_m\n", "bitsmith_recipe"),
        ("bitsmith_recipe: 9\nto: a\n", "version 9"),
        ("bitsmith_recipe: 1\nto: 5\n", "`to` should be"),
        ("bitsmith_recipe: 1\nto: a\nrules: 7\n", "`rules` should be"),
        ("bitsmith_recipe: 1\nto: a\nrules: [1]\n", "`rules` should be"),
        ("bitsmith_recipe: 1\nto: a\ngroup_size: yes\n", "`group_size`"),
        ("bitsmith_recipe: 1\nto: a\nsymmetric: 1\n", "`symmetric`"),
        ("bitsmith_recipe: 1\nto: a\nextra: 1\n", "'extra' is unknown"),
        ("bitsmith_recipe: 1\nto: a\nkeep: x\n", "`keep` should be"),
        ("bitsmith_recipe: 1\nto: a\nrules: [1\nkeep: []\n", "not YAML: line 4: "),
        ("bitsmith_recipe: [1\n", "not YAML"),
        ("a: &x [1]\nb: *x\n", "no aliases"),
        ("!!python/object/apply:os.system ['true']\n", "not YAML"),
        ("\x00", "not YAML"),
        ("[" * 3000, "not YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(FileError, match=said):
        RecipeFile.read(path)


def test_a_missing_or_huge_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        RecipeFile.read(tmp_path / "none.yaml")
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(FileError, match="at most"):
        RecipeFile.read(huge)
