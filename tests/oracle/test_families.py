"""Families beside Llama: logits equal those of transformers and llama.cpp, and their files convert both ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

import bitsmith
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import UnsupportedError
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.torch.model import load_torch_model
from tests.families import EXPERTS, MODELS, WRAPPERS, folder_of, logits_of, wrapper_of
from tests.oracle import llama
from tests.oracle.freeze_mmproj import content

transformers_logging.disable_progress_bar()
TOKENS = np.random.default_rng(1).integers(4, 4096, 60)
MMPROJ: dict[str, Any] = json.loads((Path(__file__).parent / "llama_mmproj.json").read_text())
FROZEN: dict[str, Any] = json.loads((Path(__file__).parent / "llama_converter.json").read_text())
# llama.cpp has no window for EXAONE 4 unless it has 64 layers, and rounds the ends of gpt-oss's YaRN ramp
OTHERWISE = {"phi-long": "size of its context", "exaone4": "sliding window", "gpt_oss": "truncate false"}
Made = tuple[Path, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The folder of a family and transformers' logits, made once."""

    @lru_cache
    def make(name: str) -> Made:
        folder, model = folder_of(name, tmp_path_factory.mktemp("families") / name)
        return folder, logits_of(model, TOKENS)

    return make


def decoder_of(path: Path) -> Decoder:
    decoder = load_torch_model(open_checkpoint(path), dense=True).decoder
    assert isinstance(decoder, Decoder)
    return decoder


def close(ours: np.ndarray, theirs: np.ndarray, share: float = 1e-4) -> None:
    assert theirs.std() > 0.1, "a flat oracle would hide errors"
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * theirs.std())


def mean_kld(logits: np.ndarray, reference: np.ndarray) -> float:
    ours, theirs = (torch.as_tensor(each).double().log_softmax(-1) for each in (logits, reference))
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name: str, made: Callable[[str], Made]) -> None:
    folder, expected = made(name)
    decoder = decoder_of(folder)
    close(decoder.forward(TOKENS[None])[0].numpy(), expected)
    cache = decoder.new_cache(len(TOKENS))
    first = 50 if name == "phi-long" else 30  # in one step beyond the context that changes its rotation
    parts = [decoder.forward(TOKENS[None, :first], cache)[0].numpy()]
    parts += [decoder.forward(TOKENS[None, i : i + 1], cache)[0].numpy() for i in range(first, len(TOKENS))]
    close(np.concatenate(parts), expected)


@pytest.mark.parametrize("name", MODELS)
def test_gguf_files_are_those_of_llama_cpp(name: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    """Keys and tensors are those of llama.cpp's converter; llama.cpp computes what we do; and the way back is exact."""
    folder, expected = made(name)
    written = bitsmith.convert(folder, to="gguf/f32", out=tmp_path / "model.gguf")
    with GgufSource(written.out) as source:
        keys = {key: np.asarray(value).tolist() for key, value in source.metadata.items()}
        shapes = {info.name: list(info.shape) for info in source.tensors.values()}
    frozen = FROZEN[name]
    assert shapes == frozen["tensors"]
    assert {key: keys.get(key) for key in frozen["keys"]} == frozen["keys"]
    ours = decoder_of(written.out).forward(TOKENS[None])[0].numpy()
    close(ours, expected)
    said = " ".join(written.warnings)
    if name in OTHERWISE:
        assert OTHERWISE[name] in said
    else:
        assert "llama.cpp" not in said
    if name in ("exaone4", "gpt_oss"):
        return
    theirs = llama.load(written.out)
    logits = theirs.logits(TOKENS)
    theirs.close()
    assert abs(mean_kld(logits, ours)) < 1e-6


@pytest.mark.parametrize("name", [name for name in MODELS if name != "gpt_oss"])
def test_folders_made_from_gguf_files(name: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    folder, expected = made(name)
    written = bitsmith.convert(folder, to="gguf/f32", out=tmp_path / "model.gguf")
    back = bitsmith.convert(written.out, to="f32", out=tmp_path / "back").out
    config = json.loads((back / "config.json").read_text())
    # transformers' default of some families is outside a small vocabulary
    (back / "config.json").write_text(json.dumps(config | {"pad_token_id": 1}))
    model, found = AutoModelForCausalLM.from_pretrained(back, dtype=torch.float32, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    close(logits_of(model.eval(), TOKENS), expected)


@pytest.mark.parametrize("to", ["native/int8", "gptq/int8"])
def test_transposed_stacks_of_gpt_oss_stay_in_16_bits(to: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    folder, expected = made("gpt_oss")
    written = bitsmith.quantize(folder, to=to, out=tmp_path / "q")
    assert "stacks of matrices stay in 16 bits" in " ".join(written.warnings)
    layouts = {name: info.layout for name, info in open_checkpoint(written.out).source.tensors.items()}
    assert {layout for name, layout in layouts.items() if name.endswith("bias")} <= {"f32", "f16"}
    assert mean_kld(decoder_of(written.out).forward(TOKENS[None])[0].numpy(), expected) < 0.1


@pytest.mark.parametrize("name", ["gpt_oss", "gemma4_moe"])
def test_bnb_refuses_stacks_of_experts_unless_they_are_kept(name: str, made: Callable[[str], Made]) -> None:
    folder, _ = made(name)
    with pytest.raises(UnsupportedError, match=r"experts hold \d+% of the weights"):
        bitsmith.quantize(folder, to="bnb/nf4", dry_run=True)
    assert bitsmith.quantize(folder, to="bnb/nf4", keep=["experts", "mlp"], dry_run=True).plan


@pytest.mark.parametrize("name", MODELS)
def test_the_core_computes_every_family(name: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    """Whole texts and step by step, as torch does; from files of floats and of codes."""
    folder, expected = made(name)
    decoder = bitsmith.load(folder, kernel="exact").decoder
    close(np.asarray(decoder.forward(TOKENS[None])[0]), expected)
    cache = decoder.new_cache(len(TOKENS))
    first = 50 if name == "phi-long" else 30
    parts = [np.asarray(decoder.forward(TOKENS[None, :first], cache)[0])]
    parts += [np.asarray(decoder.forward(TOKENS[None, i : i + 1], cache)[0]) for i in range(first, len(TOKENS))]
    close(np.concatenate(parts), expected)
    packed = bitsmith.quantize(folder, to="q8_0", out=tmp_path / "q.gguf").out
    ours, torchs = (
        np.asarray(bitsmith.load(packed, kernel=each).logits(TOKENS[None])[0]) for each in ("exact", "torch")
    )
    close(ours, torchs)


def check_parts_for_images(name: str, checkpoint: Checkpoint, written: Path, folder: Path) -> None:
    """The text's file and the mmproj file are those of llama.cpp's converter; without a known tower there is none."""
    assert checkpoint.folder is not None
    if name not in MMPROJ:
        assert "no mmproj file" in " ".join(checkpoint.notes)
        with pytest.raises(UnsupportedError, match="mmproj"):
            bitsmith.convert(checkpoint.folder, to="mmproj", out=folder)
        return
    assert "--to mmproj" in " ".join(checkpoint.notes)
    tower = bitsmith.convert(checkpoint.folder, to="mmproj", out=folder).out
    assert tower.name == f"mmproj-{name}-F16.gguf"
    model = llama.load(written)
    assert model.takes_images(tower)
    model.close()
    found = content(tower)
    broken = found["tensors"].pop("v.token_embd.img_break", None)  # llama.cpp's loader wants it, its converter drops it
    assert (broken is not None) == (name == "mistral3")
    frozen = MMPROJ[name]
    assert found == {"keys": frozen["keys"], "tensors": frozen["tensors"]}
    with GgufSource(written) as source:
        keys = {key: np.asarray(source.metadata[key]).tolist() for key in frozen["text"]["keys"]}
        shapes = {info.name: list(info.shape) for info in source.tensors.values()}
    assert shapes == frozen["text"]["tensors"]
    assert keys == frozen["text"]["keys"]


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_are_seen_through(name: str, tmp_path: Path) -> None:
    """The text part of a model for images: its logits, its GGUF file, and a folder that keeps the tower as it was."""
    folder, model = wrapper_of(name, tmp_path / name)
    expected = logits_of(model, TOKENS)
    checkpoint = open_checkpoint(folder)
    assert "not of the text decoder" in " ".join(checkpoint.notes)
    close(decoder_of(folder).forward(TOKENS[None])[0].numpy(), expected)
    close(np.asarray(bitsmith.load(folder, kernel="exact").logits(TOKENS[None])[0]), expected)
    written = bitsmith.convert(folder, to="gguf/f32", out=tmp_path / "model.gguf").out
    close(decoder_of(written).forward(TOKENS[None])[0].numpy(), expected)
    theirs = llama.load(written)
    assert abs(mean_kld(theirs.logits(TOKENS), expected)) < 1e-6
    theirs.close()
    check_parts_for_images(name, checkpoint, written, tmp_path)
    made = bitsmith.quantize(folder, to="native/int8", out=tmp_path / "made").out
    packed, original = open_checkpoint(made).source, checkpoint.source
    stacked = {key for key in original.tensors if ".experts." in key}
    apart = {key for key in packed.tensors if ".experts." in key}
    assert packed.tensors.keys() - apart == original.tensors.keys() - stacked
    assert len(apart) == (len(stacked) // 2 * 3 * EXPERTS["num_experts"])
    for key, info in packed.tensors.items():
        inside = "language_model." in key and ".layers." in key and info.rows > 1 and ".mlp.gate." not in key
        inside = inside and not key.endswith(("conv1d.weight", "in_proj_a.weight", "in_proj_b.weight"))
        assert ("int8" in info.layout) == inside, key
    rounded = decoder_of(made).forward(TOKENS[None])[0].numpy()
    assert np.sqrt(np.square(rounded - expected).mean()) < 0.2 * expected.std()
    if name in ("gemma3", "qwen3_vl", "mistral3"):  # others amplify what rounding loses at single positions
        close(rounded, expected, 0.4)
