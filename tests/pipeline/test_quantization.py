"""quantize: plans that come true, bytes that do not depend on threads, nothing left behind."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.containers.gguf.metadata_values import string
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.containers.manifest import from_gguf_keys, from_json
from bitsmith.containers.safetensors import SafetensorsSource
from bitsmith.errors import FileError, TensorError, UnsupportedError
from bitsmith.pipeline import chunks, encode, quantization
from bitsmith.system.progress import Progress
from tests.gguf_files import Stored, write_gguf
from tests.tiny import CONFIG, make_folder, weights

TARGETS = [
    *("q8_0", "q4_k_m", "f16", "bf16", "iq4_xs", "native/int4", "native/nf4-dq", "native/int8-tensor-asym"),
    *("gptq/int4", "gptq/int3-asym", "awq/int4", "compressed/w4a16-asym", "compressed/w8a8", "compressed/fp8-tensor"),
]


def content(paths: tuple[Path, ...]) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("to", TARGETS)
def test_a_dry_run_tells_the_size_to_the_byte(tiny: Path, tmp_path: Path, to: str) -> None:
    planned = bitsmith.quantize(tiny, to=to, out=tmp_path / "out", dry_run=True)
    assert not planned.out.exists()
    made = bitsmith.quantize(tiny, to=to, out=tmp_path / "out")
    assert made.size == planned.size == sum(path.stat().st_size for path in made.paths)
    assert planned.expected_seconds > 0


@pytest.mark.parametrize("to", TARGETS)
def test_bytes_depend_on_nothing_but_the_input(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    first = bitsmith.quantize(tiny, to=to, out=tmp_path / "out", threads=1)
    before = content(first.paths)
    for module in (chunks, encode):
        monkeypatch.setattr(module, "CHUNK_WEIGHTS", 1 << 12)
    second = bitsmith.quantize(tiny, to=to, out=tmp_path / "out", threads=3, force=True)
    data = {t.name: t.sha256 for t in first.manifest.tensors}  # type: ignore[union-attr]
    assert data == {t.name: t.sha256 for t in second.manifest.tensors}  # type: ignore[union-attr]
    monkeypatch.undo()
    third = bitsmith.quantize(tiny, to=to, out=tmp_path / "out", threads=4, force=True)
    assert content(third.paths) == before


def test_the_manifest_tells_source_and_error(tiny: Path, tmp_path: Path) -> None:
    made = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf")
    manifest = from_gguf_keys(GgufSource(made.out).metadata)
    assert manifest == made.manifest
    assert manifest is not None
    original = SafetensorsSource(tiny)
    record = next(record for record in manifest.tensors if record.name == "token_embd.weight")
    stored = original.packed("model.embed_tokens.weight").parts["data"]
    assert record.source_sha256 == hashlib.sha256(stored.tobytes()).hexdigest()
    w = original.rows("model.embed_tokens.weight").astype(np.float64)
    decoded = GgufSource(made.out).rows("token_embd.weight").astype(np.float64)
    assert record.error == pytest.approx(((w - decoded) ** 2).sum() / (w**2).sum(), rel=1e-5)
    assert 1e-6 < record.error < 1e-3
    native = bitsmith.quantize(tiny, to="native/int4", out=tmp_path / "folder")
    assert from_json(SafetensorsSource(native.out).metadata["bitsmith.manifest"]) == native.manifest


def test_q_and_k_rows_are_permuted_and_come_back(tiny: Path, tmp_path: Path) -> None:
    gguf = bitsmith.quantize(tiny, to="bf16", out=tmp_path / "x.gguf")
    back = bitsmith.quantize(gguf.out, to="native/bf16", out=tmp_path / "back")
    original, returned = SafetensorsSource(tiny), SafetensorsSource(back.out)
    assert set(returned.tensors) == set(original.tensors)
    for name in original.tensors:
        assert np.array_equal(original.rows(name), returned.rows(name)), name
    moved = GgufSource(gguf.out).rows("blk.0.attn_q.weight")
    assert not np.array_equal(moved, original.rows("model.layers.0.self_attn.q_proj.weight"))


def test_biases_of_q_and_k_are_permuted_as_their_weights(tmp_path: Path) -> None:
    config = {**CONFIG, "attention_bias": True}
    folder = make_folder(tmp_path / "biased", tensors=weights(config), attention_bias=True)
    made = bitsmith.quantize(folder, to="f32", out=tmp_path / "x.gguf")
    tokens = np.array([[3, 1, 4, 1, 5]])
    expected = bitsmith.load(folder, kernel="exact").logits(tokens)
    np.testing.assert_allclose(bitsmith.load(made.out, kernel="exact").logits(tokens), expected, rtol=0, atol=1e-4)
    back = SafetensorsSource(bitsmith.quantize(made.out, to="native/bf16", out=tmp_path / "native").out)
    for name in SafetensorsSource(folder).tensors:
        np.testing.assert_array_equal(back.rows(name), SafetensorsSource(folder).rows(name))


@pytest.mark.parametrize("to", ["q8_0", "q4_0", "q4_k", "q2_k", "q3_k", "q6_k", "iq4_xs", "native/iq4_nl"])
def test_weights_beyond_the_scales_range_are_an_error_that_names_the_tensor(tmp_path: Path, to: str) -> None:
    config = {**CONFIG, "hidden_size": 256, "num_hidden_layers": 1}
    tensors = weights(config)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][3, 5] = -3e38
    folder = make_folder(tmp_path / "huge", tensors=tensors, hidden_size=256, num_hidden_layers=1)
    with pytest.raises(TensorError, match=f"{re.escape(name)}.*overflow"):
        bitsmith.quantize(folder, to=to, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("weight", "refused"), [(16646144.0, True), (16580608.0, False)])
def test_a_weight_may_come_back_at_half_but_no_less(tmp_path: Path, weight: float, refused: bool) -> None:
    """The largest value of iq4_nl is 127 * 65504."""
    config = {**CONFIG, "num_hidden_layers": 1}
    tensors = weights(config)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][3, 5] = weight
    folder = make_folder(tmp_path / "large", tensors=tensors, num_hidden_layers=1)
    if refused:
        with pytest.raises(TensorError, match=rf"{re.escape(name)}.*overflow.*1\.66461e\+07"):
            bitsmith.quantize(folder, to="native/iq4_nl", out=tmp_path / "x")
    else:
        made = bitsmith.quantize(folder, to="native/iq4_nl", out=tmp_path / "x")
        assert SafetensorsSource(made.out).rows(name, 3, 4)[0, 5] == 127 * 65504


def test_empty_tensors_are_copied_and_a_file_of_nothing_else_is_refused(tmp_path: Path) -> None:
    empty = {"a.weight": np.zeros((0, 64), np.float32), "b.weight": np.zeros((64, 0), np.float32)}
    folder = make_folder(
        tmp_path / "odd", tensors={**empty, "c.weight": np.ones((4, 64), np.float32)}, model_type="odd"
    )
    for to in ("int8", "f16", "nf4"):
        made = bitsmith.quantize(folder, to=f"native/{to}", out=tmp_path / to)
        shapes = {info.name: info.shape for info in SafetensorsSource(made.out).tensors.values()}
        assert shapes == {"a.weight": (0, 64), "b.weight": (64, 0), "c.weight": (4, 64)}
        assert not bitsmith.inspect(made.out, verify=True).problems
    with pytest.raises(FileError, match="no weights"):
        bitsmith.quantize(make_folder(tmp_path / "none", tensors=empty), to="native/int8", out=tmp_path / "x")


def test_a_sliding_window_that_llama_cpp_does_not_know_is_told(tmp_path: Path) -> None:
    change = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64}
    folder = make_folder(tmp_path / "m", **change)
    planned = bitsmith.quantize(folder, to="q8_0", out=tmp_path / "x.gguf", dry_run=True)
    assert any("last 64 tokens" in warning for warning in planned.warnings)


def test_gguf_to_gguf_keeps_unknown_keys_and_copies_what_does_not_change(tiny: Path, tmp_path: Path) -> None:
    first = bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "first.gguf")
    source = GgufSource(first.out)
    keys = {**source.keys, "somebody.elses": string("kept")}
    arrays = {name: source.packed(name).parts["data"] for name in source.tensors}
    tensors = {name: Stored(info.layout, info.shape, arrays[name]) for name, info in source.tensors.items()}
    write_gguf(tmp_path / "marked.gguf", keys, tensors)
    second = quantization.quantize(tmp_path / "marked.gguf", to="q8_0", out=tmp_path / "second.gguf", requantize=True)
    result = GgufSource(second.out)
    assert result.metadata["somebody.elses"] == "kept"
    for name in source.tensors:
        assert np.array_equal(result.packed(name).parts["data"], arrays[name])
    assert second.manifest is not None
    assert all(t.error == 0 for t in second.manifest.tensors)


def test_rules_and_pure(tiny: Path, tmp_path: Path) -> None:
    plan = bitsmith.quantize(tiny, to="q8_0", rules=["ffn_down=q4_0", "ffn=q5_0"], dry_run=True).plan
    types = {t.info.name: t.info.layout for t in plan.tensors}
    assert types["blk.0.ffn_down.weight"] == "q4_0"
    assert types["blk.1.ffn_up.weight"] == "q5_0"
    assert types["blk.0.attn_q.weight"] == "q8_0"
    pure = bitsmith.quantize(tiny, to="q4_0", pure=True, dry_run=True).plan
    assert {t.info.layout for t in pure.tensors} == {"q4_0", "f32"}
    unused = bitsmith.quantize(tiny, to="native/int8", rules=["nothing_like_it=f16"], dry_run=True)
    assert any("nothing_like_it" in warning for warning in unused.warnings)


def test_a_group_that_does_not_divide_the_row_fails_in_the_plan(tiny: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"_proj\.weight.*128"):
        bitsmith.quantize(tiny, to="native/int4-g128", dry_run=True)
    types = {t.info.layout for t in bitsmith.quantize(tiny, to="native/int4", dry_run=True).plan.tensors}
    assert types == {"bitsmith/int4-g64", "bitsmith/int4-g128", "bf16"}


@pytest.mark.parametrize("to", ["q8_0", "native/int4"])
def test_split_outputs(tiny: Path, tmp_path: Path, to: str) -> None:
    whole = bitsmith.quantize(tiny, to=to, out=tmp_path / "whole.gguf")
    split = quantization.quantize(tiny, to=to, out=tmp_path / "split.gguf", max_shard_size="400kB")
    assert len([path for path in split.paths if path.suffix in (".gguf", ".safetensors")]) > 2
    assert split.size == sum(path.stat().st_size for path in split.paths)
    open_source = GgufSource if to == "q8_0" else SafetensorsSource
    one, many = open_source(whole.out), open_source(split.out)
    assert set(one.tensors) == set(many.tensors)
    for name in one.tensors:
        assert np.array_equal(one.rows(name), many.rows(name))
    assert bitsmith.inspect(split.out, verify=True).problems == ()


def test_sharded_and_f32_f16_sources(tmp_path: Path) -> None:
    import json

    from safetensors.numpy import save_file

    tensors = weights(CONFIG)
    folder = make_folder(tmp_path / "sharded", tensors=tensors)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        dtype = np.float32 if file.startswith("model-00001") else np.float16
        save_file({name: tensors[name].astype(dtype) for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = bitsmith.quantize(folder, to="q4_0", out=tmp_path / "a.gguf")
    single = bitsmith.quantize(make_folder(tmp_path / "single", tensors=tensors), to="q4_0", out=tmp_path / "b.gguf")
    for name in GgufSource(single.out).tensors:
        ours, theirs = GgufSource(sharded.out).rows(name), GgufSource(single.out).rows(name)
        assert np.allclose(ours, theirs, atol=0.02), name  # float16 halves of bfloat16 weights: equal but for denormals


def test_progress_reaches_its_total(tiny: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    bitsmith.quantize(tiny, to="q8_0", out=tmp_path / "x.gguf", report=seen.append)
    for stage in ("quantize", "verify"):
        reports = [p for p in seen if p.stage == stage]
        assert [p.done for p in reports] == sorted(p.done for p in reports)
        assert reports[-1].done == reports[-1].total > 0


def test_a_failure_while_working_leaves_nothing(tmp_path: Path) -> None:
    tensors = weights(CONFIG)
    tensors["lm_head.weight"][-1, -1] = np.nan
    folder = make_folder(tmp_path / "model", tensors=tensors)
    with pytest.raises(bitsmith.BitsmithError, match="lm_head"):
        bitsmith.quantize(folder, to="q8_0", out=tmp_path / "x.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_process_leaves_no_final_name(tmp_path: Path, sent: signal.Signals) -> None:
    """A model large enough that the signal arrives in the middle."""
    folder = make_folder(tmp_path / "model", hidden_size=512, intermediate_size=4096, num_hidden_layers=8)
    out = tmp_path / "x.gguf"
    program = (  # a shell's background jobs inherit SIGINT ignored
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from bitsmith.cli import main; main()"
    )
    words = [sys.executable, "-c", program, "quantize", str(folder), "--to", "q2_k", "--out", str(out)]
    process = subprocess.Popen([*words, "--threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".x.gguf.*.work/*/files/x.gguf")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.01)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert not out.exists()
    if sent is signal.SIGKILL:  # nothing can clean up then; the next run does
        assert process.returncode == -signal.SIGKILL
        assert list(tmp_path.glob(".x.gguf.*.work/*/files/x.gguf"))
        bitsmith.quantize(make_folder(tmp_path / "small"), to="q8_0", out=out)
    else:
        assert process.returncode == 130
        assert "Traceback" not in errors
    assert not list(tmp_path.glob(".*.partial"))


def test_quantize_imports_neither_torch_nor_transformers(tiny: Path, tmp_path: Path) -> None:
    program = (
        "import sys, bitsmith\n"
        f"bitsmith.quantize({str(tiny)!r}, to='q4_k_m', out={str(tmp_path / 'x.gguf')!r})\n"
        f"bitsmith.inspect({str(tmp_path / 'x.gguf')!r}, verify=True)\n"
        "print(sorted({'torch', 'transformers', 'matplotlib', 'huggingface_hub'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]"]


def test_bits_per_weight_of_what_is_copied(tiny: Path) -> None:
    assert bitsmith.quantize(tiny, to="native/bf16", dry_run=True).plan.bits_per_weight == 16
