"""Freeze llama-quantize's choice of types for known shapes into the table that the tests hold ours against.

    python bench/freeze_mixes.py PATH/TO/llama-quantize tests/oracle/llama_quantize_types.json --build 11434

The committed table was made with llama.cpp build 11434. Models are GGUF files that have a header and no data
(sparse, F16), quantized with --dry-run. No type depends on the number of rows, so rows are capped: no file claims
more than 20 GB, and all of them together take a few megabytes of disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from bitsmith.recipe import ALIASES, MIXES

ROWS_CAP = 1024
ODD_MIXES = ("f16", "q8_0", "q5_0", "q2_k", "q3_k_m", "q4_k_m", "iq4_xs", "iq1_s", "iq2_m", "iq3_xs", "mxfp4_moe")
OURS_ALONE = ("nvfp4",)  # llama.cpp has the type, llama-quantize no such mix

_LINE = re.compile(r"^\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\w+), size = .*?(?:\((\w+)\))?$")
_BLOCK = re.compile(r"^blk\.(\d+)\.")

Shapes = dict[str, tuple[int, ...]]

# what a GLM-5-next file must have besides the common keys
_GLM5_KEYS = {
    "attention.key_length_mla": 64,
    "attention.value_length_mla": 64,
    "attention.q_lora_rank": 256,
    "attention.kv_lora_rank": 256,
    "attention.indexer.head_count": 4,
    "attention.indexer.key_length": 64,
    "attention.indexer.top_k": 64,
    "attention.indexer.kpool": 4,
    "ssm.conv_kernel": 4,
    "kda.head_dim": 64,
    "expert_feed_forward_length": 512,
    "expert_shared_count": 1,
    "hyper_connection.count": 4,
    "hyper_connection.sinkhorn_iterations": 4,
}

# names of other architectures' tensors: which of them llama-quantize leaves alone, and which count as layers
_ODD_GLOBAL = (
    *("per_layer_token_embd.weight", "position_embd.weight", "token_types.weight", "per_layer_model_proj.weight"),
    *("altup_proj.weight", "v.patch_embd.weight", "v.position_embd.weight", "v.patch_merger.weight"),
    *("v.blk.0.attn_rel_pos.weight", "v.blk.0.attn.rel_pos_h.weight", "sam.pos_embd.weight", "sam.neck.0.weight"),
    *("sam.net_2.weight", "a.rvq.codebook.weight", "mm.a.code_embd.weight", "mm.2.weight", "cls.output.weight"),
)
_ODD_BLOCK = (
    *("attn_kv_b.weight", "attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight", "attn_q_a.weight"),
    *("attn_q_b.weight", "attn_rel_b.weight", "attn_sinks", "ffn_down_shexp.weight", "ffn_gate_shexp.weight"),
    *("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "ffn_gate_tid2eid.weight", "ffn_sub_norm.weight"),
    *("laurel_l.weight", "inp_gate.weight", "ssm_conv1d.weight", "ssm_in.weight", "ssm_a", "ssm_f_a.weight"),
    *("ssm_f_b.weight", "ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight", "ssm_alpha.weight"),
    *("shortconv.conv.weight", "shortconv.in_proj.weight", "hc_attn_fn.weight", "nextn.eh_proj.weight"),
    *("indexer.k_proj.weight", "indexer.q_proj.weight", "indexer.attn_k.weight", "indexer.attn_q_b.weight"),
    *("indexer.proj.weight", "indexer_compressor_gate.weight", "indexer_compressor_ape.weight"),
    *(f"time_mix_{part}.weight" for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2")),
    *(f"time_mix_{part}.weight" for part in ("g1", "g2", "decay_w1", "decay_w2", "lerp_fused", "key", "output")),
)


@dataclass(frozen=True)
class Model:
    """A shape whose types are frozen. Sizes are in weights; `style` says which tensors a block has."""

    arch: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    style: str = "llama"
    experts: int = 0

    def tensors(self) -> Shapes:
        """Row-major shapes by GGUF name."""
        shapes: Shapes = {"token_embd.weight": (self.vocab, self.hidden), "output_norm.weight": (self.hidden,)}
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.hidden)
        for layer, (name, shape) in itertools.product(range(self.layers), self._block().items()):
            shapes[f"blk.{layer}.{name}"] = shape
        return shapes | (dict.fromkeys(_ODD_GLOBAL, (64, 256)) if self.style == "odd" else {})

    def _block(self) -> Shapes:
        hidden, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        block: Shapes = {"attn_norm.weight": (hidden,), "attn_output.weight": (hidden, q)}
        if self.style in ("falcon", "fused"):
            block |= {"attn_qkv.weight": (q + 2 * kv, hidden)}
        else:
            block |= {"attn_q.weight": (q, hidden), "attn_k.weight": (kv, hidden), "attn_v.weight": (kv, hidden)}
            block |= {"ffn_norm.weight": (hidden,)}
        if self.style == "qwen2":
            block |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        if self.style == "biased":
            block |= {"ffn_up.bias": (self.intermediate,), "ffn_down.bias": (hidden,), "attn_output.bias": (hidden,)}
        if self.style == "odd":
            block |= dict.fromkeys(_ODD_BLOCK, (64, 256))
        if self.style == "qwen3":
            block |= {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        return block | self._mlp()

    def _mlp(self) -> Shapes:
        up, down = (self.intermediate, self.hidden), (self.hidden, self.intermediate)
        if self.experts:
            n = self.experts
            routed: Shapes = {"ffn_gate_exps.weight": (n, *up), "ffn_up_exps.weight": (n, *up)}
            return routed | {"ffn_down_exps.weight": (n, *down), "ffn_gate_inp.weight": (n, self.hidden)}
        gate: Shapes = {} if self.style == "falcon" else {"ffn_gate.weight": up}
        return gate | {"ffn_up.weight": up, "ffn_down.weight": down}


MODELS: dict[str, Model] = {
    "reference": Model("llama", 8, 256, 768, 4, 2, 64, 4096),
    "llama-8b": Model("llama", 32, 4096, 14336, 32, 8, 128, 128256),
    "llama-2-7b": Model("llama", 32, 4096, 11008, 32, 32, 128, 32000),
    "llama-3.2-1b, tied": Model("llama", 16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "llama-70b": Model("llama", 80, 8192, 28672, 64, 8, 128, 128256),
    "llama-65b": Model("llama", 80, 8192, 22016, 64, 64, 128, 32000),
    "llama, rows of 192": Model("llama", 6, 192, 576, 3, 3, 64, 4096),
    "llama, rows of 192, tied": Model("llama", 9, 192, 512, 6, 1, 32, 4096, tied=True),
    "llama, rows of 80": Model("llama", 5, 80, 208, 4, 2, 20, 4096),
    "llama with biases": Model("llama", 18, 512, 1536, 8, 2, 64, 4096, style="biased"),
    "qwen2-0.5b, tied": Model("qwen2", 24, 896, 4864, 14, 2, 64, 151936, tied=True, style="qwen2"),
    "qwen2-72b": Model("qwen2", 80, 8192, 29568, 64, 8, 128, 152064, style="qwen2"),
    "qwen3-0.6b, tied": Model("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, tied=True, style="qwen3"),
    "mixtral-8x7b": Model("llama", 32, 4096, 14336, 32, 8, 128, 32000, experts=8),
    "qwen3-30b-a3b": Model("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, style="qwen3", experts=128),
    "phi-3-mini": Model("phi3", 32, 3072, 8192, 32, 32, 96, 32064, style="fused"),
    "olmo, 80 layers": Model("olmo", 80, 512, 1536, 8, 8, 64, 4096),
    "mixtral of 80 layers": Model("llama", 80, 512, 1536, 8, 2, 64, 4096, experts=8),
    "names of other architectures": Model("llama", 9, 256, 768, 4, 1, 64, 4096, style="odd"),
    "names of other architectures, tied": Model("qwen2", 8, 256, 768, 4, 4, 64, 4096, tied=True, style="odd"),
    "glm5-next": Model("glm5-next", 8, 256, 768, 4, 4, 64, 4096, style="odd"),
    "falcon-7b": Model("falcon", 32, 4544, 18176, 71, 1, 64, 65024, style="falcon"),
    "falcon-40b": Model("falcon", 60, 8192, 32768, 128, 8, 64, 65024, style="falcon"),
}


def write_model(model: Model, shapes: Shapes, path: Path) -> None:
    """A GGUF file with a whole header and a hole in place of data; vectors and routers F32, matrices F16."""
    writer = GGUFWriter(path, model.arch)
    writer.add_context_length(4096)
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.intermediate)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(model.vocab)
    writer.add_file_type(1)
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(2)
    if model.arch == "glm5-next":
        for key, value in _GLM5_KEYS.items():
            writer.add_uint32(f"glm5-next.{key}", value)
        writer.add_float32("glm5-next.hyper_connection.epsilon", 1e-6)
    end = 0
    for name, shape in shapes.items():
        single = len(shape) == 1 or "ffn_gate_inp" in name or model.style == "odd"
        capped = shape if len(shape) < 2 else (*shape[:-2], min(shape[-2], ROWS_CAP), shape[-1])
        dtype = np.dtype(np.float32 if single else np.float16)
        nbytes = int(np.prod(capped, dtype=np.int64)) * dtype.itemsize
        writer.add_tensor_info(name, list(capped), dtype, nbytes)
        end += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    os.truncate(path, path.stat().st_size + 32 + end)


def write_importance(shapes: Shapes, path: Path) -> None:
    """An importance matrix that names every matrix, with one made-up value a column for each expert."""
    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, shape in shapes.items():
        if len(shape) > 1:
            experts = shape[0] if len(shape) == 3 else 1
            writer.add_tensor(f"{name}.in_sum2", np.ones((experts, shape[-1]), dtype=np.float32))
            writer.add_tensor(f"{name}.counts", np.ones((experts, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ask(program: Path, model: Path, mix: str, options: list[str]) -> dict[str, str] | None:
    """The type that llama-quantize would give each tensor; None where rows fit no block and it refuses the model."""
    done = subprocess.run([program, *options, "--dry-run", model, mix.upper(), "1"], capture_output=True, text=True)
    text = done.stdout + done.stderr
    if done.returncode and "no tensor type fallback is defined" in text:
        return None
    done.check_returncode()
    found = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            found[match[1]] = (match[3] or match[2]).lower()
    if not found:
        raise SystemExit(f"cannot read what {program} said:\n{text[-2000:]}")
    return found


def runs_of(model: Model, importance: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(label, mix, options) of every run; odd names need a few mixes only."""
    for mix in ODD_MIXES if model.style == "odd" else [*(mix for mix in MIXES if mix not in OURS_ALONE), *ALIASES]:
        yield mix, mix, []
        yield f"{mix} importance", mix, ["--imatrix", str(importance)]
        if mix in MIXES:
            yield f"{mix} pure", mix, ["--pure"]


def squeeze(types: list[str]) -> str:
    """Run-length: "q6_k*4 q4_k*2"."""
    return " ".join(f"{key}*{len(list(group))}" for key, group in itertools.groupby(types))


def pattern_of(name: str) -> str:
    """A tensor's name with its layer replaced by a star."""
    return _BLOCK.sub("blk.*.", name)


def freeze(program: Path, model: Model, folder: Path) -> dict[str, object]:
    """One model's entry of the table: types by tensor pattern, then by run-length string, the runs that gave it."""
    shapes = model.tensors()
    path, importance = folder / "model.gguf", folder / "importance.gguf"
    write_model(model, shapes, path)
    write_importance(shapes, importance)
    types: dict[str, dict[str, list[str]]] = {}  # pattern -> run-length string -> labels
    runs = []
    for label, mix, options in runs_of(model, importance):
        found = ask(program, path, mix, options)
        if found is None:
            continue
        runs.append(label)
        if found.keys() != shapes.keys():
            raise SystemExit(f"{label}: llama-quantize named other tensors than the file has")
        by_pattern: dict[str, list[str]] = {}
        for name in shapes:
            by_pattern.setdefault(pattern_of(name), []).append(found[name])
        for pattern, chosen in by_pattern.items():
            types.setdefault(pattern, {}).setdefault(squeeze(chosen), []).append(label)
    for left in (path, importance):
        left.unlink()
    facts = ("arch", "layers", "heads", "kv_heads", "experts")
    return {
        "shape": {fact: getattr(model, fact) for fact in facts},
        "runs": ", ".join(runs),
        "tensors": {
            pattern: {
                "shape": shapes[pattern.replace("*", "0")],
                "types": {k: "all" if len(by_kind) == 1 else ", ".join(labels) for k, labels in by_kind.items()},
            }
            for pattern, by_kind in types.items()
        },
    }


def dump(table: dict[str, object], path: Path) -> None:
    """JSON with one line a tensor pattern."""
    text = json.dumps(table, indent=1)
    text = re.sub(r"\n {5,}", " ", text)
    path.write_text(re.sub(r"\n {4}\}", "}", text) + "\n", encoding="utf-8")


def main() -> None:
    """Ask llama-quantize about every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path, help="llama-quantize")
    parser.add_argument("table", type=Path, help="JSON file to write")
    parser.add_argument("--build", type=int, required=True, help="its build number; a source archive reports 0")
    parser.add_argument("--work", type=Path, help="folder for the sparse files (default: the system's)")
    args = parser.parse_args()
    models = {}
    for name, model in MODELS.items():
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            models[name] = freeze(args.program, model, Path(folder))
        print(f"{name}: done", flush=True)
    dump({"program": "llama-quantize", "build": args.build, "models": models}, args.table)


if __name__ == "__main__":
    main()
