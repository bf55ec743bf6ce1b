"""The sound inputs that are damaged: a small model in every container, tokenizers, importance files, texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

import bitsmith
from bitsmith.calibration.imatrix import Entry, Imatrix, imatrix_file
from tests.models.tokenizer.spm import model_proto, small_model
from tests.tiny import make_folder

GGUF_TYPES = ("q8_0", "q4_k_m", "f16", "q4_0")
FOLDERS = ("native/int4", "native/nf4", "gptq/int4", "awq/int4", "compressed/w8a8", "compressed/fp8")


def make_seeds(root: Path) -> Path:
    """Write all seeds below `root`, one folder for each kind."""
    plain = make_folder(root / "folder" / "plain", hidden_size=64, intermediate_size=256)
    for kind in GGUF_TYPES:
        (root / "gguf").mkdir(exist_ok=True)
        bitsmith.quantize(plain, to=kind, out=root / "gguf" / f"{kind}.gguf", threads=1)
    (root / "split").mkdir()
    bitsmith.quantize(plain, to="q8_0", out=root / "split" / "m.gguf", max_shard_size="400kB", threads=1)
    for name in FOLDERS:
        bitsmith.quantize(plain, to=name, out=root / "folder" / name.replace("/", "-"), threads=1)
    bitsmith.quantize(plain, to="native/int8", out=root / "folder" / "shards", max_shard_size="400kB", threads=1)
    _sentencepiece(plain, root / "folder" / "spm")
    _importance(root / "importance")
    texts = root / "texts"
    texts.mkdir()
    (texts / "plain.txt").write_text("Once upon a time there was a small model. " * 200)
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    (texts / "chats.jsonl").write_text("\n".join([json.dumps(chat), json.dumps({"text": "a text"})] * 20))
    return root


def _sentencepiece(plain: Path, folder: Path) -> None:
    """The same model with a tokenizer.model in place of the tokenizer.json."""
    shutil.copytree(plain, folder)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(model_proto(small_model()))


def _importance(folder: Path) -> None:
    folder.mkdir()
    entries = {
        f"blk.{layer}.{name}.weight": Entry(np.random.default_rng(0).random((1, cols), np.float32), np.array([64]))
        for layer in range(2)
        for name, cols in (("attn_q", 64), ("attn_k", 64), ("attn_v", 64), ("attn_output", 64), ("ffn_down", 256))
    }
    for suffix in (".dat", ".gguf"):
        layout, data = imatrix_file(Imatrix(entries, ("text",), 1, 64), f"m{suffix}")
        content = bytearray(layout.size)
        content[: len(layout.header)] = layout.header
        for region in layout.regions:
            content[region.offset : region.offset + region.nbytes] = data[region.tensor].tobytes()
        (folder / f"m{suffix}").write_bytes(content)
