import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitsmith.containers.base import Source
from bitsmith.containers.gguf.metadata_values import Value, array, f32, string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.manifest import Manifest, TensorRecord, to_gguf_keys, to_json
from bitsmith.containers.native import CODES, NativeCodec
from bitsmith.containers.native import metadata as native_metadata
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.models.inspection import Inspection, inspect
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from bitsmith.system.progress import Progress
from tests.gguf_files import Stored, random_stored, stored, write_gguf

NO_SOURCE = "0" * 64
W = np.random.default_rng(0).standard_normal((6, 64), np.float32)
TENSORS: dict[str, np.ndarray | Stored] = {
    "w": W,
    "n": np.ones(5, np.float16),
    "q": Stored("q8_0", (2, 32), np.zeros((2, 34), np.uint8)),
}
KEYS = {"general.architecture": string("llama"), "tokens": array([f"t{i}" for i in range(100)]), "n": u32(3)}


def digest(tensor: np.ndarray | Stored) -> str:
    return hashlib.sha256(stored(tensor).data.tobytes()).hexdigest()


def manifest_keys(tensors: dict[str, np.ndarray | Stored]) -> dict[str, Value]:
    records = tuple(TensorRecord(name, digest(tensor), NO_SOURCE, 0.0) for name, tensor in tensors.items())
    return to_gguf_keys(Manifest("0", "r", records))


def gguf(path: Path, tensors: dict[str, np.ndarray | Stored], keys: dict[str, Value]) -> GgufSource:
    write_gguf(path / "m.gguf", {**KEYS, **keys}, tensors)
    return GgufSource(path / "m.gguf")


def verified(source: Source) -> Inspection:
    return inspect(source, verify=True)


def test_what_is_in_a_file(tmp_path: Path) -> None:
    found = inspect(gguf(tmp_path, TENSORS, {}))
    assert (found.container, found.architecture, found.parameters) == ("gguf", "llama", 6 * 64 + 5 + 64)
    assert found.files == (tmp_path / "m.gguf",)
    assert found.size == (tmp_path / "m.gguf").stat().st_size
    assert found.bits_per_weight == 8 * (6 * 64 * 4 + 10 + 68) / found.parameters
    assert [(t.name, t.shape, t.layout, t.nbytes, t.bits_per_weight) for t in found.tensors] == [
        ("w", (6, 64), "f32", 1536, 32.0),
        ("n", (5,), "f16", 10, 16.0),
        ("q", (2, 32), "q8_0", 68, 8.5),
    ]
    assert all(t.finite is t.sha256 is t.matches is None for t in found.tensors)
    assert found.problems == ()
    assert found.types() == {"f32": (1, 1536), "q8_0": (1, 68), "f16": (1, 10)}
    assert found.rows()[2] == ("q", "2x32", "q8_0", "68", "8.500")
    assert "llama" in found.summary()


def test_long_values_are_shown_short_and_kept_whole(tmp_path: Path) -> None:
    keys = {"long": string("é" * 1000), "esc": string("a\x1b[31m\n\udcff"), "scores": array(np.float32([0.5] * 9))}
    found = inspect(gguf(tmp_path, {}, {**keys, "few": array([1, 2])}))
    shown = found.shown_metadata()
    assert shown["tokens"] == "[t0, t1, t2, t3, t4, t5, t6, t7, ...] (100 items)"
    assert shown["long"] == "é" * 200 + "... (1,000 characters)"
    assert shown["esc"] == "a\\x1b[31m\\n\\udcff"
    assert shown["scores"].endswith("(9 items)")
    assert (shown["few"], shown["n"]) == ("[1, 2]", "3")
    whole = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert whole["architecture"] == "llama"
    assert whole["metadata"]["tokens"] == [f"t{i}" for i in range(100)]
    assert whole["metadata"]["long"] == "é" * 1000
    assert whole["metadata"]["esc"] == "a\x1b[31m\n\udcff"
    assert whole["metadata"]["scores"] == [0.5] * 9


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    values = np.float32([1, np.nan, np.inf, -np.inf])
    found = inspect(gguf(tmp_path, {}, {"scores": array(values), "one": f32(np.nan)}))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["metadata"]["scores"] == [
        *(1.0, "NaN", "Infinity", "-Infinity")
    ]
    assert found.metadata["one"] == "NaN"


def test_what_is_shown_is_bounded(tmp_path: Path) -> None:
    nested = array([array([array([array([1] * 20)] * 20)] * 20)] * 20)
    many = {f"key.{n}": u32(n) for n in range(1000)}
    found = inspect(gguf(tmp_path, {}, {"nested": nested, "k" * 5000: string("x" * 10**6), **many}))
    shown = found.shown_metadata()
    assert len(shown) == 201
    assert shown["..."] == "805 more keys"
    assert max(map(len, shown)) < 220
    assert max(map(len, shown.values())) < 2000
    assert "[20 items]" in shown["nested"]


def test_tensors_are_grouped_by_layer(tmp_path: Path) -> None:
    tensors = {f"blk.{n}.w.weight": random_stored("q8_0" if n else "q4_0", (2, 32)) for n in range(12)}
    tensors |= {"output.weight": random_stored("q8_0", (2, 32)), "v1.0": random_stored("q8_0", (1, 32))}
    found = inspect(gguf(tmp_path, tensors, {}))
    assert [row[:4] for row in found.grouped_rows()] == [
        ("blk.0.w.weight", "2x32", "q4_0", "36"),
        ("blk.*.w.weight (11)", "2x32", "q8_0", "748"),
        ("output.weight", "2x32", "q8_0", "68"),
        ("v1.0", "1x32", "q8_0", "34"),
    ]
    assert len(found.rows()) == len(found.to_dict()["tensors"]) == 14
    assert repr(found).startswith("<Inspection ")
    assert len(repr(found)) < 300


@pytest.mark.parametrize(
    ("config", "file", "expected"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, {}, "bitsandbytes, 8 bits"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, {}, "fp8, blocks of [128"),
        ({"quantization": {"group_size": 64, "bits": 4}}, {}, "mlx, 4 bits, groups of 64"),
        ({}, {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}, "modelopt, NVFP4"),
        ({"quantization_config": {"quant_method": "x\x1b[31m", "bits": {"a": 1}}}, {}, "x\\x1b[31m"),
    ],
)
def test_the_quantization_of_other_tools_is_named(
    tmp_path: Path, config: dict[str, object], file: dict[str, object], expected: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if file:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps(file))
    found = inspect(write_safetensors(tmp_path / "model.safetensors", {"w": W.astype(np.int8)}, {}))
    assert found.quantization.startswith(expected)
    assert "bitsmith does not decode it" in found.summary()


def test_the_mix_of_a_gguf_file_is_named(tmp_path: Path) -> None:
    keys = {"general.file_type": u32(15), "quantize.imatrix.file": string("x")}
    assert inspect(gguf(tmp_path, {}, keys)).quantization == "Q4_K_M, weighted by an importance matrix"


def test_a_sound_file_has_no_problems(tmp_path: Path) -> None:
    found = verified(gguf(tmp_path, TENSORS, manifest_keys(TENSORS)))
    assert found.problems == ()
    assert [(t.finite, t.matches, t.check) for t in found.tensors] == [(True, True, "ok")] * 3
    assert found.tensors[0].sha256 == digest(W)
    assert found.rows()[0][-1] == "ok"
    assert "3 of 3 tensors finite, 3 of 3 hashes match" in found.summary()


def test_without_a_manifest_only_values_are_checked(tmp_path: Path) -> None:
    found = verified(gguf(tmp_path, TENSORS, {}))
    assert found.problems == ()
    assert [(t.finite, t.matches, t.check) for t in found.tensors] == [(True, None, "finite")] * 3
    assert "no manifest" in found.summary()


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = gguf(tmp_path, TENSORS, manifest_keys(TENSORS)).path
    content = bytearray(path.read_bytes())
    content[content.index(W.tobytes()) + 700] ^= 1
    path.write_bytes(content)
    found = verified(GgufSource(path))
    assert [t.matches for t in found.tensors] == [False, True, True]
    assert found.tensors[0].check == "wrong hash"
    assert len(found.problems) == 1
    assert found.problems[0].startswith("tensor w has the hash")
    assert inspect(GgufSource(path)).problems == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_found(tmp_path: Path, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitsmith.models.verification.SLAB_WEIGHTS", 128)
    w = W.copy()
    w[5, 7] = value
    found = verified(gguf(tmp_path, {**TENSORS, "w": w}, {}))
    assert [t.finite for t in found.tensors] == [False, True, True]
    assert found.problems[0].startswith("tensor w holds NaN or Inf, first at row 5, column 7")
    assert found.tensors[0].check == "not finite"


def test_hashes_do_not_depend_on_slabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = gguf(tmp_path, {**TENSORS, "k": random_stored("iq2_xs", (3, 256))}, {})
    whole = [t.sha256 for t in verified(source).tensors]
    for slab in (1, 64, 129):
        monkeypatch.setattr("bitsmith.models.verification.SLAB_WEIGHTS", slab)
        assert [t.sha256 for t in verified(source).tensors] == whole


def test_a_type_without_weights_is_a_problem_of_its_tensor_only(tmp_path: Path) -> None:
    tensors = {"x": random_stored("q8_1", (2, 32)), "w": W}
    found = verified(gguf(tmp_path, tensors, manifest_keys(tensors)))
    assert [(t.finite, t.matches) for t in found.tensors] == [(None, True), (True, True)]
    assert found.tensors[0].check == "not decoded"
    assert found.problems[0].startswith("tensor x cannot be decoded")


def test_a_file_that_shrank_is_a_problem(tmp_path: Path) -> None:
    source = gguf(tmp_path, TENSORS, {})
    with source.path.open("r+b") as file:
        file.truncate(source.path.stat().st_size - 64)
    found = verified(source)
    assert [t.finite for t in found.tensors] == [True, True, None]
    assert found.tensors[2].check == "unreadable"
    assert found.problems[0].startswith("tensor q cannot be read")


def test_a_manifest_of_other_tensors_is_a_problem(tmp_path: Path) -> None:
    keys = manifest_keys({"w": W, "gone": W})
    found = inspect(gguf(tmp_path, {"w": W, "new": W}, keys))
    assert len(found.problems) == 2
    assert "does not have (1: gone)" in found.problems[0]
    assert "no record of tensors that the file has (1: new)" in found.problems[1]
    keys["bitsmith.tensor.sha256"] = array(["x", "y"])
    assert "damaged" in inspect(gguf(tmp_path, TENSORS, keys)).problems[0]


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    reports: list[Progress] = []
    inspect(gguf(tmp_path, TENSORS, {}), verify=True, report=reports.append)
    assert all(report.done <= report.total for report in reports)
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert reports[-1].done == reports[-1].total == 1536 + 10 + 68


def write_safetensors(path: Path, entries: dict[str, np.ndarray], metadata: dict[str, str]) -> SafetensorsSource:
    save_file(entries, path, metadata)
    return SafetensorsSource(path)


def test_native_tensors_are_verified_part_by_part(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    format = get_format("int4-g32")
    parts = NativeCodec(format).encode(QuantTensor(format, *nearest(W, format)))
    assert next(iter(parts)) == CODES
    hashes = [hashlib.sha256(data.tobytes()).hexdigest() for data in parts.values()]
    sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
    metadata = {
        **native_metadata({"w": ("int4-g32", W.shape)}),
        "bitsmith.manifest": to_json(Manifest("0", "r", (TensorRecord("w", sha256, NO_SOURCE, 0.1),))),
    }
    entries = {f"w.{part}": data for part, data in parts.items()}
    found = verified(write_safetensors(tmp_path / "model.safetensors", entries, metadata))
    assert found.problems == ()
    assert (found.container, found.architecture) == ("safetensors", "llama")
    assert [(t.name, t.layout, t.finite, t.matches) for t in found.tensors] == [("w", "bitsmith/int4-g32", True, True)]
    entries["w.codes"] = entries["w.codes"] ^ np.uint8(1)
    changed = verified(write_safetensors(tmp_path / "model.safetensors", entries, metadata))
    assert [t.matches for t in changed.tensors] == [False]


def test_plain_safetensors(tmp_path: Path) -> None:
    found = verified(write_safetensors(tmp_path / "model.safetensors", {"w": W}, {"format": "pt"}))
    assert found.problems == ()
    assert found.architecture is None
    assert found.tensors[0].sha256 == digest(W)
