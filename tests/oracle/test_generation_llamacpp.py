"""llama.cpp's own server runs the files that `bitsmith quantize` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import xllamacpp

import bitsmith
from bitsmith.runtime.sampling import GREEDY

PROMPT = "It was a dark evening in November, and"
TOKENS = 24


def server(path: Path) -> Any:
    """llama-server in process, on one thread."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.warmup = False
    return xllamacpp.Server(params)


def completed(path: Path) -> str:
    """What the server continues PROMPT with, greedily."""
    request = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": False}
    text: str = server(path).handle_completions(request)["choices"][0]["text"]
    return text


def test_the_same_text_from_a_file_without_loss(tmp_path: Path) -> None:
    made = bitsmith.quantize("reference", to="f32", out=tmp_path / "f32.gguf")
    ours = bitsmith.load(made.out).generate(PROMPT, max_tokens=TOKENS, sampling=GREEDY)
    assert completed(made.out) == ours
    assert len(ours.split()) > 5


@pytest.mark.parametrize("to", ["q4_k_m", "q2_k", "iq4_xs", "q5_1"])
def test_text_from_quantized_files(tmp_path: Path, to: str) -> None:
    made = bitsmith.quantize("reference", to=to, out=tmp_path / f"{to}.gguf")
    text = completed(made.out)
    assert len(text.split()) > 5
    assert "�" not in text


def test_a_split_file_and_a_chat(tmp_path: Path) -> None:
    from bitsmith.pipeline.quantization import quantize

    made = quantize("reference", to="q8_0", out=tmp_path / "split.gguf", max_shard_size="4MB")
    assert len(made.paths) == 3
    messages = [{"role": "user", "content": "Who are you?"}]
    request = {"messages": messages, "max_tokens": 8, "temperature": 0, "stream": False}
    reply = server(made.out).handle_chat_completions(request)
    ours = bitsmith.load(made.out)
    assert reply["usage"]["prompt_tokens"] == len(ours.chat_ids(messages))
    assert reply["usage"]["completion_tokens"] > 0
