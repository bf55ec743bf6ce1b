"""Large models on a small machine: a checkpoint of random weights in shards, quantized in little memory.

    python bench/large.py --shape llama-3-8b --to q4_k_m                    16 GB of weights
    python bench/large.py --shape llama-3.2-1b --to gptq/int4 --method gptq --tokens 2048
    python bench/large.py --shape llama-3-8b --folder /data/8b --keep ...   keep the checkpoint for another run

The weights are normal numbers, over and over from one table of 2^24, so that the checkpoint is written at the disk's
speed. The tokenizer is that of the built-in model.
Prints the largest resident memory of the process as the kernel counts it, processor seconds, and size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np

import bitsmith
from bitsmith.containers.safetensors_layout import INDEX_NAME

_TABLE = 1 << 24
_SHAPES = {  # hidden, inner, layers, heads, heads of keys, vocabulary, tied
    "llama-3.2-1b": (2048, 8192, 16, 32, 8, 128256, True),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256, False),
}


def main() -> None:
    """Make the checkpoint, quantize it, print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=_SHAPES, default="llama-3.2-1b")
    parser.add_argument("--to", default="q4_k_m")
    parser.add_argument("--method")
    parser.add_argument("--tokens", type=int, default=2048, help="of the calibration, if the method needs one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", help="as of quantize")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--words", type=int, help="a smaller vocabulary than the shape has")
    parser.add_argument("--folder", type=Path, help="where the checkpoint lies; made there if it is missing")
    parser.add_argument("--keep", action="store_true", help="do not remove the checkpoint")
    options = parser.parse_args()
    with _folder(options.folder, keep=options.keep) as folder:
        model = folder / "model"
        if not (model / INDEX_NAME).is_file():
            make_model(model, options.shape, options.layers, options.words)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        out = folder / ("out" if "/" in options.to else "out.gguf")
        words = [sys.executable, "-m", "bitsmith", "quantize", str(model), "--to", options.to, "--out", str(out)]
        words += ["--threads", str(options.threads), "--force", "--quiet"]
        if options.method:
            words += ["--method", options.method, "--calibration-tokens", str(options.tokens)]
        words += ["--memory", options.memory] if options.memory else []
        child = subprocess.Popen(words)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(f"exit status {os.waitstatus_to_exitcode(status)}")
        made = sum(path.stat().st_size for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file())
        print(
            f"{options.shape}, {size / 1e9:.2f} GB, to {options.to} {options.method or ''}: peak memory "
            f"{usage.ru_maxrss * 1024 / 1e6:,.0f} MB, {usage.ru_utime:.0f} s of processor time and "
            f"{usage.ru_stime:.0f} s of the system's, {made / 1e9:.2f} GB"
        )
        shutil.rmtree(out) if out.is_dir() else out.unlink()


@contextmanager
def _folder(given: Path | None, *, keep: bool) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="large-") as text:
            yield Path(text)
        return
    given.mkdir(parents=True, exist_ok=True)
    try:
        yield given
    finally:
        if not keep:
            shutil.rmtree(given / "model", ignore_errors=True)


def make_model(folder: Path, shape: str, layers: int | None = None, words: int | None = None) -> None:
    """Write the checkpoint: a shard with the embedding and the head, and one for every four layers."""
    hidden, inner, usual, heads, kv_heads, vocab, tied = _SHAPES[shape]
    count, head, vocab = layers or usual, hidden // heads, words or vocab
    folder.mkdir(parents=True)
    reference = Path(bitsmith.__file__).parent / "reference"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((reference / name).read_bytes())
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden},
        **{"intermediate_size": inner, "num_hidden_layers": count, "num_attention_heads": heads},
        **{"num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": 8192},
        **{"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": tied},
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    ends = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    ends |= {} if tied else {"lm_head.weight": (vocab, hidden)}
    shards = [ends]
    for layer in range(count):
        if layer % 4 == 0:
            shards.append({})
        prefix = f"model.layers.{layer}."
        shards[-1] |= {
            f"{prefix}input_layernorm.weight": (hidden,),
            f"{prefix}post_attention_layernorm.weight": (hidden,),
            f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}self_attn.k_proj.weight": (kv_heads * head, hidden),
            f"{prefix}self_attn.v_proj.weight": (kv_heads * head, hidden),
            f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}mlp.gate_proj.weight": (inner, hidden),
            f"{prefix}mlp.up_proj.weight": (inner, hidden),
            f"{prefix}mlp.down_proj.weight": (hidden, inner),
        }
    table = (np.random.default_rng(0).standard_normal(_TABLE, np.float32) * hidden**-0.5).astype(ml_dtypes.bfloat16)
    ones = np.ones(hidden, ml_dtypes.bfloat16)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(folder / name, shard, table, ones)
        places |= dict.fromkeys(shard, name)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _write(path: Path, shapes: dict[str, tuple[int, ...]], table: np.ndarray, ones: np.ndarray) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = 0
        for shape in shapes.values():
            if len(shape) == 1:
                file.write(ones[: shape[0]].view(np.uint8).data)
                continue
            left = int(np.prod(shape))
            start = (start + 977) % (_TABLE // 2)  # another place of the table for each matrix
            while left:
                part = table[start : start + min(left, _TABLE - start)]
                file.write(part.view(np.uint8).data)
                left, start = left - len(part), 0


if __name__ == "__main__":
    main()
