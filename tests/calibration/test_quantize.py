"""`quantize --calibration` and `imatrix`: weighted rounding, llama-quantize's mixes, manifests, wrong calls."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.calibration import collect as collect_module
from bitsmith.calibration.imatrix import Entry, Imatrix, read_imatrix
from bitsmith.calibration.importance import from_file
from bitsmith.calibration.run import make_imatrix
from bitsmith.containers.gguf.blocks import CODECS
from bitsmith.containers.gguf.metadata_values import string, u32
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.manifest import from_gguf_keys, from_json
from bitsmith.errors import FileError, TensorError, UsageError
from bitsmith.models.arch.names import hf_name
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.pipeline import chunks
from bitsmith.pipeline.result import Quantized
from bitsmith.quant.formats import get_format
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from tests.calibration.test_imatrix import write
from tests.cli.command import Command
from tests.gguf_files import write_gguf
from tests.tiny import CONFIG, HIDDEN, INNER, make_folder, weights

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
WORDS = {"calibration": "default", "calibration_tokens": 640, "calibration_context": 64, "method": "nearest"}


@pytest.fixture
def imatrix(tiny: Path, tmp_path: Path) -> Path:
    make_imatrix(tiny, out=tmp_path / "im.gguf", calibration_tokens=640, calibration_context=64)
    return tmp_path / "im.gguf"


@pytest.fixture
def no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics pass fails if it is called."""

    def run(*words: object, **options: object) -> None:
        raise AssertionError("the statistics pass ran")

    monkeypatch.setattr(collect_module, "collect", run)


def hashes(made: Quantized) -> dict[str, str]:
    assert made.manifest is not None
    return {tensor.name: tensor.sha256 for tensor in made.manifest.tensors}


def recipe(made: Quantized) -> dict[str, object]:
    source = open_checkpoint(made.out).source
    manifest = from_gguf_keys(source.metadata) or from_json(source.metadata["bitsmith.manifest"])
    assert manifest == made.manifest
    assert manifest is not None
    found: dict[str, object] = json.loads(manifest.recipe)
    return found


def edited(path: Path, out: Path, changes: dict[str, Entry | None]) -> Path:
    """The same importance file with other entries; None leaves one out."""
    found = read_imatrix(path)
    entries = {name: entry for name, entry in {**found.entries, **changes}.items() if entry is not None}
    return write(Imatrix(entries, found.datasets, found.chunks, found.chunk_size), out)


@pytest.mark.parametrize("to", ["q4_0", "iq4_nl", "native/int4-g32", "native/nf4", "native/int3-channel"])
def test_columns_that_are_fed_most_lose_least(tiny: Path, tmp_path: Path, imatrix: Path, to: str) -> None:
    plain = bitsmith.quantize(tiny, to=to, out=tmp_path / "plain")
    weighted = bitsmith.quantize(tiny, to=to, out=tmp_path / "weighted", calibration=str(imatrix))
    original = open_checkpoint(tiny).source
    importance = from_file(imatrix, original.tensors.values())
    lost = []
    for made in (plain, weighted):
        checkpoint, total = open_checkpoint(made.out), 0.0
        for name in ("blk.0.ffn_down.weight", "blk.1.attn_output.weight", "blk.1.attn_v.weight"):
            own, columns = hf_name(name), importance.of(name)
            assert own is not None
            assert columns is not None
            error = checkpoint.source.rows(name if checkpoint.naming == "gguf" else own) - original.rows(own)
            total += float((error.astype(np.float64) ** 2 * columns / columns.mean()).sum())
        lost.append(total)
    assert lost[1] < 0.995 * lost[0]


@pytest.mark.parametrize("to", ["q4_k_m", "native/int4-g32"])
def test_a_pass_and_its_importance_file_give_the_same_bytes(
    tiny: Path, tmp_path: Path, imatrix: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    first = bitsmith.quantize(tiny, to=to, out=tmp_path / "out", threads=1, **WORDS)
    content = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in first.paths}
    again = bitsmith.quantize(tiny, to=to, out=tmp_path / "out", threads=1, force=True, **WORDS)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again.paths} == content
    monkeypatch.setattr(chunks, "CHUNK_WEIGHTS", 1 << 12)
    second = bitsmith.quantize(tiny, to=to, out=tmp_path / "second", threads=3, calibration=str(imatrix))
    assert hashes(second) == hashes(first)
    other = bitsmith.quantize(tiny, to=to, out=tmp_path / "other", seed=1, **WORDS)
    assert hashes(other) != hashes(first)
    plain = bitsmith.quantize(tiny, to=to, out=tmp_path / "plain")
    assert hashes(plain) != hashes(first)


@pytest.mark.parametrize("to", ["q8_0", "native/int8"])
def test_the_manifest_tells_the_calibration(tiny: Path, tmp_path: Path, imatrix: Path, to: str) -> None:
    made = bitsmith.quantize(tiny, to=to, out=tmp_path / "made", seed=2, **WORDS)
    assert made.calibration is not None
    told = made.calibration.to_dict()
    assert recipe(made)["calibration"] == made.to_dict()["calibration"] == told
    assert (told["tokens"], told["context"], told["seed"]) == (640, 64, 2)
    made = bitsmith.quantize(tiny, to=to, out=tmp_path / "file", calibration=str(imatrix))
    digest = hashlib.sha256(imatrix.read_bytes()).hexdigest()
    assert recipe(made)["calibration"] == {
        "source": "im.gguf",
        "sha256": digest,
        "tokens": 640,
        "context": 64,
        "seed": None,
    }
    assert "calibration" not in recipe(bitsmith.quantize(tiny, to=to, out=tmp_path / "plain"))


def test_the_models_own_text_is_named_before_it_is_written(tiny: Path, tmp_path: Path) -> None:
    words = {"calibration": "self", "calibration_tokens": 80, "calibration_context": 16}
    planned = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf", dry_run=True, **words)
    assert planned.calibration is not None
    assert set(planned.calibration.sha256) == {"0"}
    made = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf", **words)
    assert made.size == planned.size == made.out.stat().st_size
    assert made.calibration is not None
    assert set(made.calibration.sha256) != {"0"}
    assert recipe(made)["calibration"] == made.calibration.to_dict()


@pytest.mark.usefixtures("no_pass")
@pytest.mark.parametrize("source", ["default", "self"])
def test_a_dry_run_runs_no_pass(tiny: Path, tmp_path: Path, source: str) -> None:
    planned = bitsmith.quantize(tiny, to="q4_k_m", out=tmp_path / "x.gguf", calibration=source, dry_run=True)
    assert planned.size > 0
    assert not planned.out.exists()


@pytest.mark.usefixtures("no_pass")
def test_mixes_choose_as_llama_quantize_does_with_an_imatrix(tmp_path: Path) -> None:
    def types(**words: object) -> dict[str, str]:
        made = bitsmith.quantize("reference", to="q4_0", out=tmp_path / "x.gguf", dry_run=True, **words)
        return {tensor.info.name: tensor.info.layout for tensor in made.plan.tensors}

    plain, weighted = types(), types(calibration="default")
    assert {name: (plain[name], weighted[name]) for name in plain if plain[name] != weighted[name]} == {
        "blk.0.ffn_down.weight": ("q4_0", "q4_1")
    }


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_unweighted_unless_they_are_the_head_or_the_file_names_them(tmp_path: Path, tied: bool) -> None:
    tensors = weights(CONFIG)
    if tied:
        del tensors["lm_head.weight"]
    folder = make_folder(tmp_path / "model", tensors=tensors, tie_word_embeddings=tied)
    make_imatrix(folder, out=tmp_path / "im.gguf", calibration_tokens=640, calibration_context=64)
    entries = read_imatrix(tmp_path / "im.gguf").entries
    assert entries.keys() & {"output.weight", "token_embd.weight"} == {"token_embd.weight" if tied else "output.weight"}
    sums = np.linspace(0, 5, HIDDEN, dtype=np.float32)[None]
    named = edited(tmp_path / "im.gguf", tmp_path / "named.gguf", {"token_embd.weight": Entry(sums, np.array([9]))})
    made = {
        source: hashes(bitsmith.quantize(folder, to="q4_0", pure=True, out=tmp_path / f"{i}.gguf", calibration=source))
        for i, source in enumerate([None, str(tmp_path / "im.gguf"), str(named)])
    }
    plain, weighted, also = made.values()
    assert weighted["token_embd.weight"] != also["token_embd.weight"]
    assert (plain["token_embd.weight"] != weighted["token_embd.weight"]) is tied
    assert {name for name in weighted if weighted[name] != also[name]} == {"token_embd.weight"}
    assert plain["blk.0.attn_q.weight"] != weighted["blk.0.attn_q.weight"]


def test_experts_in_one_tensor_are_weighted_each_by_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_WEIGHTS", 256)
    random = np.random.default_rng(1)
    w = random.standard_normal((3, 5, 64)).astype(np.float32)
    name, keys = "blk.0.ffn_down_exps.weight", {"general.architecture": string("unheard-of")}
    write_gguf(tmp_path / "model.gguf", {**keys, "unheard-of.block_count": u32(1)}, {name: w})
    entry = Entry(random.random((3, 64), np.float32) ** 8, np.array([1, 2, 3]))
    for path in (tmp_path / "im.gguf", tmp_path / "im.dat"):
        write(Imatrix({name: entry}, (), 1, 16), path)
        out = tmp_path / f"{path.suffix}.gguf"
        bitsmith.quantize(tmp_path / "model.gguf", to="q4_0", pure=True, out=out, calibration=str(path))
        found = GgufSource(out).packed(name).parts["data"].reshape(3, 5, -1)
        columns = read_imatrix(path).entries[name].importance.reshape(3, 64)
        for expert in range(3):
            tensor = QuantTensor(get_format("q4_0"), *nearest(w[expert], get_format("q4_0"), columns[expert]))
            np.testing.assert_array_equal(found[expert], CODECS["q4_0"].encode(tensor)["data"])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"blk.2.attn_q.weight": Entry(np.ones((1, HIDDEN), np.float32), np.array([1]))}, "no such matrix"),
        ({"blk.1.attn_q.weight": Entry(np.ones((1, 32), np.float32), np.array([1]))}, "rows of 64, found 32"),
        ({"blk.1.attn_q.weight": Entry(np.ones((2, HIDDEN), np.float32), np.array([1, 1]))}, "found 128"),
    ],
)
def test_the_importance_of_another_model(
    tiny: Path, tmp_path: Path, imatrix: Path, changes: dict[str, Entry | None], named: str
) -> None:
    other = edited(imatrix, tmp_path / "other.gguf", changes)
    with pytest.raises(FileError, match=rf"other\.gguf.*{named}.*another model"):
        bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "x.gguf", calibration=str(other), dry_run=True)


@pytest.mark.parametrize(("method", "tokens", "told"), [("gptq", 16, 1), ("gptq", 512, 0), ("nearest", 16, 0)])
def test_fewer_tokens_than_columns_are_told(tiny: Path, tmp_path: Path, method: str, tokens: int, told: int) -> None:
    words = {"calibration_tokens": tokens, "calibration_context": 16, "group_size": 32, "dry_run": True}
    words["calibration"] = "default"
    planned = bitsmith.quantize(tiny, to="gptq/int4", out=tmp_path / "x", method=method, **words)
    said = f"{tokens} tokens are fewer than the {INNER} columns of the widest matrix"
    assert len([each for each in planned.warnings if each.startswith(said)]) == told


def test_what_a_file_leaves_out_is_told(tiny: Path, tmp_path: Path, imatrix: Path) -> None:
    part = edited(imatrix, tmp_path / "part.gguf", {"blk.1.attn_k.weight": None})
    made = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "x.gguf", calibration=str(part))
    said = "has no entry for 1 of 14 matrices, which are rounded without importance: "
    assert f"part.gguf {said}blk.1.attn_k.weight" in made.warnings
    folder = bitsmith.quantize(tiny, to="native/int8", out=tmp_path / "x", calibration=str(part), dry_run=True)
    assert folder.warnings == (f"part.gguf {said}model.layers.1.self_attn.k_proj.weight",)
    whole = edited(imatrix, tmp_path / "layer.gguf", {f"blk.1.{name}.weight": None for name in LINEARS})
    made = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "y.gguf", calibration=whole)
    assert "layer.gguf has no entry for 7 of 14 matrices" in made.warnings[-1]
    assert "and 4 more" in made.warnings[-1]
    made = bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "x.gguf", calibration=part, force=True)
    plain = hashes(bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "plain.gguf"))
    same = {name for name, each in hashes(made).items() if each == plain[name] and name.startswith("blk.1.")}
    assert {name for name in same if "norm" not in name} == {"blk.1.attn_k.weight"}


def test_damaged_weights_leave_nothing_behind(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    tensors["model.layers.1.self_attn.v_proj.weight"][0, 0] = np.nan
    folder = make_folder(tmp_path / "tiny", tensors=tensors)
    with pytest.raises(TensorError, match=r"^blk\.1\.attn_v\.weight: the weights hold NaN"):
        bitsmith.quantize(folder, to="q4_0", out=tmp_path / "x.gguf", **WORDS)
    with pytest.raises(TensorError, match=r"^blk\.1\.attn_v\.weight: the weights hold NaN"):
        bitsmith.quantize(folder, to="q4_0", out=tmp_path / "x.gguf", **{**WORDS, "method": "gptq"})
    for method in ("nearest", "gptq"):
        with pytest.raises(TensorError, match=r"^model\.layers\.1\.self_attn\.v_proj\.weight: the weights hold NaN"):
            bitsmith.quantize(folder, to="gptq/int4", out=tmp_path / "x", **{**WORDS, "method": method})
    with pytest.raises(TensorError, match=r"blk\.1\.attn_v"):
        make_imatrix(folder, out=tmp_path / "x.gguf", calibration_tokens=64, calibration_context=64)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.usefixtures("no_pass")
def test_what_cannot_be_written_fails_before_the_pass(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "x.gguf", **WORDS)
    with pytest.raises(UsageError, match="exists already"):
        make_imatrix(tiny, out=tmp_path / "x.gguf")
    with pytest.raises(UsageError, match=r"ends in \.gguf"):
        make_imatrix(tiny, out=tmp_path / "x.txt")
    with pytest.raises(FileError, match="there is no folder"):
        make_imatrix(tiny, out=tmp_path / "none" / "x.gguf")
    with pytest.raises(UsageError, match="there is no calibration="):
        bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "y.gguf", calibration_tokens=64)
    assert (tmp_path / "x.gguf").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "x.gguf"]


def test_only_the_pass_imports_torch(tiny: Path, tmp_path: Path, imatrix: Path) -> None:
    script = (
        "import sys, bitsmith\n"
        "model, out, imatrix = sys.argv[1:]\n"
        "bitsmith.quantize(model, to='q4_k_m', out=out)\n"
        "bitsmith.quantize(model, to='q4_k_m', out=out, calibration=imatrix, force=True)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    words = [sys.executable, "-c", script, tiny, tmp_path / "x.gguf", imatrix]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]"]


def test_the_imatrix_command(bitsmith_command: Command, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One two three four five six seven eight nine ten. " * 100, encoding="utf-8")
    words = ("imatrix", tiny, "--out", tmp_path / "x.dat", "--calibration", text, "--calibration-context", 32)
    done = bitsmith_command(*words, "--calibration-tokens", 320, "--seed", 1, "--memory", "1MB", "--json")
    assert done.code == 0, done
    told = json.loads(done.out)
    assert (told["entries"], told["windows"]) == (7 * 2 + 1, 10)
    assert told["calibration"]["source"] == "text.txt"
    assert told["bytes"] == (tmp_path / "x.dat").stat().st_size
    found = read_imatrix(tmp_path / "x.dat")
    assert (found.chunks, found.datasets) == (10, ("text.txt",))
    assert "exists already" in bitsmith_command.fails(2, *words)
    assert bitsmith_command(*words, "--force").out.startswith("wrote ")


@pytest.mark.parametrize(
    ("code", "words", "named"),
    [
        (1, ["--calibration", "none.txt"], "there is no such file"),
        (1, ["--calibration", "none.dat"], "cannot be read"),
        (2, ["--calibration", "default", "--calibration-context", 512], "8 to 256 tokens"),
        (2, ["--calibration", "default", "--seed", -1], "--seed -1"),
        (2, ["--calibration", "default", "--memory", "lots"], "is not a size"),
        (2, ["--calibration", "default", "--calibration-tokens", 10], "expected at least one window of 256"),
    ],
)
def test_wrong_calls(
    bitsmith_command: Command, tiny: Path, tmp_path: Path, code: int, words: list[object], named: str
) -> None:
    quantize = ("quantize", tiny, "--to", "q4_0", "--out", tmp_path / "x.gguf")
    assert named in bitsmith_command.fails(code, *quantize, *words)
    assert named in bitsmith_command.fails(code, "imatrix", tiny, "--out", tmp_path / "x.gguf", *words)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_model_is_no_importance_file(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf")
    with pytest.raises(FileError, match=r"found a GGUF file of type 'model'"):
        bitsmith.quantize(tiny, to="q4_0", out=tmp_path / "y.gguf", calibration=str(made.out))
