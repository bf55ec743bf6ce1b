"""The report: what it holds, and that nothing in it asks another place or comes from a name unescaped."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import bitsmith
from bitsmith.comparison.charts import charts, placed
from bitsmith.comparison.generations import same_until
from bitsmith.comparison.outputs import Beside, Outputs
from bitsmith.comparison.result import Comparison
from tests.tiny import make_folder

EVIL = "x<script>alert(1)</script>.gguf"
pytest.importorskip("vl_convert")


@pytest.fixture
def found(tiny: Path, prose: Path, other: Path, tmp_path: Path) -> Comparison:
    """A good file, one with a damaged block, and one with a name that wants to be markup."""
    tensors = load_file(tiny / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = np.roll(tensors[name], 1, axis=0)
    damaged = make_folder(tmp_path / "damaged", tensors=tensors)
    evil = tmp_path / EVIL.replace("/", "_")
    bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "plain.gguf")
    shutil.copy(tmp_path / "plain.gguf", evil)
    words = {"context": 32, "max_windows": 8, "noise_floor": False, "generate": 6}
    return bitsmith.compare(tiny, [damaged, evil], to="q8_0", text=[f"prose={prose}", f"code={other}"], **words)  # type: ignore[arg-type]


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_one_page_that_holds_everything(found: Comparison, tmp_path: Path) -> None:
    text = found.report(tmp_path / "report.html").read_text()
    seen = Seen()
    seen.feed(text)
    assert [tag for tag, attrs in seen.tags if {"src", "href"} & attrs.keys()] == []
    assert not re.search(r"url\(|@import", text.split("<script>")[0])
    assert "default-src 'none'" in text
    assert sum(tag == "script" for tag, _ in seen.tags) == 3
    assert "<script>alert(1)" not in text
    assert "x&lt;script&gt;alert(1)" in text
    assert [attrs["id"] for tag, attrs in seen.tags if attrs.get("class") == "chart"] == [
        *("chart-loss", "chart-texts", "chart-layers"),
    ]
    rows = sum(tag == "tr" for tag, _ in seen.tags)
    assert rows == 1 + 1 + len(found.rows)
    with pytest.raises(bitsmith.BitsmithError, match="exists"):
        found.report(tmp_path / "report.html")


def test_the_heat_map_points_at_the_damaged_layer(found: Comparison) -> None:
    assert found.rows[-1].name == "damaged"
    layers = found.rows[-1].layers
    assert max(layers, key=lambda name: layers[name]) == "blk.1.ffn_down.weight"
    assert {name for name, error in layers.items() if error > 0} == {"blk.1.ffn_down.weight"}
    spec = charts(found)["layers"]
    assert spec["params"][0]["value"] == "damaged"


def test_the_charts_are_drawn(found: Comparison, tmp_path: Path) -> None:
    plots = Beside(plots=tmp_path / "plots")
    with Outputs([], plots) as outputs:
        written = outputs.write(found)
    assert [path.name for path in written] == [
        *("loss.svg", "loss.png", "texts.svg", "texts.png", "layers.svg", "layers.png"),
    ]
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "plots" / "loss.svg").read_text()
    assert "damaged" in drawn
    assert "<script" not in drawn
    with pytest.raises(bitsmith.BitsmithError, match="exists already"):
        Outputs([], plots)


def test_what_models_write(found: Comparison) -> None:
    assert len(found.generations) == 3
    each = found.generations[0]
    assert set(each.texts) == {row.name for row in found.rows}
    assert same_until("abc", "abd") == 2
    assert same_until("abc", "abc") == 3


def test_json_can_be_read_back(found: Comparison, tmp_path: Path) -> None:
    values = json.loads(found.report(tmp_path / "all.json").read_text())
    assert values["rows"][0]["summary"]["kld"]["value"] == found.rows[0].summary.kld.value


def test_names_of_points_close_together_stand_apart() -> None:
    points = [{"name": f"name{number}", "size": 5.0 + number / 100, "kld": 0.01} for number in range(4)]
    points.append({"name": "far", "size": 9.0, "kld": 0.0001})
    places = [(each["align"], each["dy"]) for each in placed(points)[:4]]
    assert len(set(places)) == 4
