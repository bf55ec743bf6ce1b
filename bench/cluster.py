"""Runs on a Ray cluster of several local nodes: the same bytes with 1, 2 and 4 workers, a node that is killed, times.

    python bench/cluster.py [--shards 8] [--megabytes 64] [--to q4_k_m] [--nodes 1,2,4]

It makes a model of random weights in several shards. Each node is a raylet of its own with one processor; Ray's
`Cluster` starts them. Times are wall-clock seconds of `quantize`, without the start of the cluster; the first run on a
cluster starts its workers, so each is timed the second time. The kill is in a cluster of two nodes.

On a machine with other work compare processor seconds: of this process (the head), of workers (their start too), and of
Ray's own processes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import bitsmith
from bitsmith.containers.safetensors_layout import INDEX_NAME

_HIDDEN, _INNER, _VOCAB, _HEADS, _KV = 1024, 2816, 4096, 16, 4


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=64, help="of one shard")
    parser.add_argument("--to", default="q4_k_m")
    parser.add_argument("--nodes", default="1,2,4")
    parser.add_argument("--no-kill", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model = _model(folder / "model", arguments.shards, arguments.megabytes)
        seconds, wanted = _run(model, folder, arguments.to)
        print(f"one process, one thread: {seconds:.1f} s", flush=True)
        first = 0.0
        for count in map(int, arguments.nodes.split(",")):
            with _cluster(count):
                _run(model, folder, arguments.to, executor="ray")
                with _Meter() as meter:
                    seconds, found = _run(model, folder, arguments.to, executor="ray")
            first = first or seconds
            same = "same bytes" if found == wanted else "OTHER BYTES"
            print(f"{count} nodes: {seconds:.1f} s, {first / seconds:.2f} times the first, {same}; {meter}", flush=True)
        if arguments.no_kill:
            return
        with _cluster(2) as (cluster, nodes):
            threading.Timer(max(1.0, first / 4), lambda: cluster.remove_node(nodes[-1], allow_graceful=False)).start()
            seconds, found = _run(model, folder, arguments.to, executor="ray")
        same = "same bytes" if found == wanted else "OTHER BYTES"
        print(f"2 nodes, one killed: {seconds:.1f} s, {same}", flush=True)


class _Meter:
    """Processor seconds of this process, of Ray's workers and of Ray itself, by looking at all processes in turn."""

    def __enter__(self) -> _Meter:
        self._head = time.process_time()
        self._before, self._last = self._seen(), dict[int, tuple[str, float]]()
        self._ended, self._own = threading.Event(), 0.0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._head = time.process_time() - self._head - self._own

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            self._last |= self._seen()
        self._own = time.thread_time()

    def __str__(self) -> str:
        sums = {"worker": 0.0, "ray": 0.0}
        for pid, (kind, seconds) in self._last.items():
            sums[kind] += seconds - self._before.get(pid, (kind, 0.0))[1]
        return f"processor: head {self._head:.1f} s, workers {sums['worker']:.1f} s, Ray {sums['ray']:.1f} s"

    @staticmethod
    def _seen() -> dict[int, tuple[str, float]]:
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes()
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            kind = "worker" if words.startswith(b"ray::") else "ray" if b"ray" in words else None
            if kind is not None and int(folder.name) != os.getpid():
                found[int(folder.name)] = (kind, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        return found


@contextmanager
def _cluster(count: int) -> Iterator[tuple[Any, list[Any]]]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(count - 1)]
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster, nodes
    finally:
        cluster.shutdown()


def _run(model: Path, folder: Path, to: str, **words: Any) -> tuple[float, str]:
    """Seconds, and the hash of the output."""
    out = folder / "out.gguf"
    start = time.monotonic()
    bitsmith.quantize(model, to=to, out=out, threads=1, force=True, **words)
    seconds = time.monotonic() - start
    with open(out, "rb") as file:
        return seconds, hashlib.file_digest(file, "sha256").hexdigest()


def _model(folder: Path, shards: int, megabytes: int) -> Path:
    """A Llama of random weights, one or more layers a shard."""
    from safetensors.numpy import save_file

    folder.mkdir()
    layer = 2 * (2 * _HIDDEN * _HIDDEN + 2 * _HIDDEN * _HIDDEN * _KV // _HEADS + 3 * _HIDDEN * _INNER)
    each = max(1, round(megabytes * 1e6 / layer))
    reference = Path(bitsmith.__file__).parent / "reference"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((reference / name).read_bytes())
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": _HIDDEN},
        **{"intermediate_size": _INNER, "num_hidden_layers": shards * each, "num_attention_heads": _HEADS},
        **{"num_key_value_heads": _KV, "vocab_size": _VOCAB, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
        **{"rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    places: dict[str, str] = {}
    generator = np.random.default_rng(0)
    layer_weights = _layer(generator)  # all layers are alike: random numbers take longer than rounding them
    for shard in range(shards):
        tensors: dict[str, np.ndarray] = {}
        for number in range(shard * each, (shard + 1) * each):
            tensors |= {f"model.layers.{number}.{name}": values for name, values in layer_weights.items()}
        if shard == 0:
            tensors |= _random({"model.embed_tokens.weight": (_VOCAB, _HIDDEN)}, generator)
            tensors["model.norm.weight"] = np.ones(_HIDDEN, ml_dtypes.bfloat16)
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def _layer(generator: np.random.Generator) -> dict[str, np.ndarray]:
    kv = _HIDDEN * _KV // _HEADS
    shapes = {
        "self_attn.q_proj": (_HIDDEN, _HIDDEN),
        "self_attn.k_proj": (kv, _HIDDEN),
        "self_attn.v_proj": (kv, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HIDDEN),
        "mlp.gate_proj": (_INNER, _HIDDEN),
        "mlp.up_proj": (_INNER, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _INNER),
    }
    found = _random({f"{name}.weight": shape for name, shape in shapes.items()}, generator)
    norms = ("input_layernorm", "post_attention_layernorm")
    return found | {f"{name}.weight": np.ones(_HIDDEN, ml_dtypes.bfloat16) for name in norms}


def _random(shapes: dict[str, tuple[int, int]], generator: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        name: (generator.standard_normal(shape, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
        for name, shape in shapes.items()
    }


if __name__ == "__main__":
    main()
