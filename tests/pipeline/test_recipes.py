"""Recipe files in a run: written, read, applied to a sister, and refused; and places that are checked early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import bitsmith
from bitsmith.errors import FileError, UsageError
from bitsmith.pipeline import sensitivities
from tests.tiny import make_folder

pytest.importorskip("highspy")

pytestmark = pytest.mark.usefixtures("few_windows")


def test_a_recipe_gives_the_same_types_again_and_to_a_sister(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    made = bitsmith.quantize(model, bits=5.5, recipe=recipe, out=tmp_path / "a.gguf")
    again = bitsmith.quantize(model, recipe=recipe, out=tmp_path / "b.gguf")
    types = [tensor.info.layout for tensor in made.plan.tensors]
    assert [tensor.info.layout for tensor in again.plan.tensors] == types
    assert made.out.read_bytes() == again.out.read_bytes()
    sister = make_folder(tmp_path / "sister", num_hidden_layers=3)
    assert bitsmith.quantize(sister, recipe=recipe, out=tmp_path / "c.gguf").size > made.size
    bitsmith.quantize(model, bits=5.5, recipe=recipe, out=tmp_path / "a.gguf", dry_run=True)  # as a run that goes on
    for other in ({"bits": 6.5}, {"bits": 5.5, "rules": ["ffn_down=q8_0"]}, {"bits": 5.5, "method": "nearest"}):
        with pytest.raises(UsageError, match="exists"):
            bitsmith.quantize(model, recipe=recipe, dry_run=True, **other)


def test_a_recipe_of_a_run_with_rules_goes_on_with_them_alone(model: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {"recipe": tmp_path / "r.yaml", "bits": 7.5, "dry_run": True}
    first = bitsmith.quantize(model, rules=["ffn_down=q8_0"], **words)
    assert bitsmith.quantize(model, rules=["ffn_down=q8_0"], **words).size == first.size
    with pytest.raises(UsageError, match="exists"):
        bitsmith.quantize(model, **words)


def test_a_recipe_keeps_what_the_run_kept(model: Path, tmp_path: Path) -> None:
    recipe, keep = tmp_path / "k.yaml", [r"layers\.0\."]
    made = bitsmith.quantize(model, to="compressed", bits=15.5, keep=keep, recipe=recipe, dry_run=True)
    again = bitsmith.quantize(model, recipe=recipe, dry_run=True)
    assert [tensor.info.layout for tensor in again.plan.tensors] == [t.info.layout for t in made.plan.tensors]
    assert any(
        "layers.0." in t.info.name and t.format
        for t in bitsmith.quantize(model, to="compressed/w4a16", dry_run=True).plan.tensors
    )


def test_layers_that_a_recipe_does_not_name_are_told(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    assert not bitsmith.quantize(model, bits=5.5, recipe=recipe, dry_run=True).warnings
    own = bitsmith.quantize(model, recipe=recipe, dry_run=True)
    assert not any("names a matrix" in each for each in own.warnings)
    sister = make_folder(tmp_path / "sister", num_hidden_layers=4)
    found = bitsmith.quantize(sister, recipe=recipe, dry_run=True)
    assert any("names a matrix of layers 2 to 3; their types are those of gguf/" in each for each in found.warnings)


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("to: gguf/q4_k_m\nrules: [ffn_down=q9_k]", {}, r"r\.yaml: rule 'ffn_down=q9_k': unknown type"),
        ("to: gguf/nonsense\nrules: []", {}, r"r\.yaml: .*nonsense"),
        ("to: gguf/q4_k_m\nrules: [ffn_down=q6_k]", {"to": "gptq/int4"}, r"r\.yaml are for gguf"),
        ("to: gguf/q4_k_m\nrules: [ffn_down=q6_k]", {"pure": True}, r"r\.yaml gives each its own"),
    ],
)
def test_recipes_that_cannot_be_applied(
    model: Path, tmp_path: Path, text: str, words: dict[str, Any], said: str
) -> None:
    (tmp_path / "r.yaml").write_text(f"bitsmith_recipe: 1\n{text}\n")
    with pytest.raises(UsageError, match=said):
        bitsmith.quantize(model, recipe=tmp_path / "r.yaml", dry_run=True, **words)


def test_places_are_checked_before_the_search(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivities, "sensitivities_of", None)
    (tmp_path / "a.gguf").write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"a\.gguf exists already"):
        bitsmith.quantize(model, bits=5.25, out=tmp_path / "a.gguf")
    (tmp_path / "r.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"r\.yaml exists already; .* another recipe"):
        bitsmith.quantize(model, bits=5.25, out=tmp_path / "b.gguf", recipe=tmp_path / "r.yaml")
    with pytest.raises(FileError, match="there is no folder"):
        bitsmith.quantize(model, bits=5.25, out=tmp_path / "b.gguf", recipe=tmp_path / "none" / "r.yaml")
