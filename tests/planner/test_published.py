"""Published figures: the records are whole, and the fitted constants and stated errors follow from them."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from bitsmith.planner import published
from bitsmith.planner.published import (
    CUDA_CONTEXT,
    LLAMACPP_BESIDE_LOGITS,
    LLAMACPP_BESIDE_SCORES,
    LLAMACPP_ERROR,
    VLLM_COPIES,
    VLLM_ERROR,
    LlamaCppMemory,
    Quality,
    VllmMemory,
    llamacpp_compute,
    llamacpp_memory,
    quality,
    vllm_memory,
    vllm_overhead,
)
from bitsmith.planner.shapes import find_shape

TABLES: dict[str, list[dict[str, Any]]] = json.loads(
    Path(published.__file__).with_name("published.json").read_text(encoding="utf-8")
)
KINDS: dict[str, type] = {"quality": Quality, "llama.cpp": LlamaCppMemory, "vllm": VllmMemory}
MIB, GIB = 1 << 20, 1 << 30

LOW = {"perplexity", "kld"}
HIGH = {"mmlu", "mmlu-pro", "gsm8k", "mbpp", "aime", "math-500"}

# Fit and check never share a log: of the GPUs' logs by size, and of vLLM's as they stand, every second one is fitted.
GPU = sorted((log for log in llamacpp_memory() if log.device != "cpu"), key=lambda log: log.compute_bytes)
TEXT = [log for log in vllm_memory() if not log.multimodal]


@pytest.mark.parametrize("table", KINDS)
def test_records_are_whole(table: str) -> None:
    fields = get_type_hints(KINDS[table])
    for record in TABLES[table]:
        assert list(record) == list(fields), record
        assert re.search(r"https://[\w.]+/\S+", record["source"]), record
        assert all(value.strip() == value != "" for value in record.values() if isinstance(value, str)), record
    assert len({json.dumps(record) for record in TABLES[table]}) == len(TABLES[table])


def test_there_are_enough() -> None:
    assert len(quality()) == len(TABLES["quality"]) > 200
    assert len({(log.model, log.context) for log in GPU}) >= 8
    assert {log.flash_attention for log in GPU} == {False, True}
    assert len(TEXT) >= 5


def test_the_known_models_have_their_counts() -> None:
    known = 0
    for record in quality():
        shape = find_shape(record.model)
        if shape is not None:
            assert record.parameters == shape.parameters, record
            known += 1
    assert known > 150


def test_quality_is_sane() -> None:
    for record in quality():
        assert record.format == record.format.lower()
        if record.metric == "perplexity":
            assert record.value >= 0.99 * record.baseline > 0, record
        elif record.metric == "kld":
            assert record.value > record.baseline == 0, record
        else:
            assert record.metric in HIGH, record
            assert 0 < record.value < 1.1 * record.baseline < 110, record
    assert {record.metric for record in quality()} == LOW | HIGH


def test_more_bits_are_better() -> None:
    ladder = ["q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"]
    for model in ("LLaMA-7B", "LLaMA-13B", "Llama-2-70B", "Llama-3-8B"):
        for metric in ("perplexity", "kld"):
            values = {
                record.format: record.value
                for record in quality()
                if (record.model, record.method, record.metric) == (model, "llama.cpp", metric)
            }
            found = [values[format] for format in ladder if format in values]
            assert found == sorted(found, reverse=True)


def test_tasks_suffer_more_than_knowledge_shows() -> None:
    """Where one source has both, mathematics loses a larger share than MMLU; long reasoning at 3 bits the most."""
    for model, format in (("Llama-3.1-8B-Instruct", "mxfp4"), ("Llama-3.1-8B-Instruct", "nvfp4")):
        kept = {r.metric: r.value / r.baseline for r in quality(format) if r.model == model}
        assert kept["gsm8k"] < kept["mmlu"] < 1
    reasoning = [r for r in quality("int3-g128") if r.metric in {"aime", "math-500"}]
    assert len(reasoning) == 4
    assert all(record.value < 0.85 * record.baseline for record in reasoning)


def test_quality_by_format() -> None:
    assert {record.format for record in quality("Q4_K_M")} == {"q4_k_m"}
    assert quality("no-such-format") == []
    assert quality() is not quality()
    assert quality()[0] is quality()[0]


def stages(log: LlamaCppMemory) -> tuple[int, int, int]:
    return published._stages(log.hidden, log.heads, log.vocab, log.context, log.ubatch, log.flash_attention)


def fit_llamacpp(logs: Sequence[LlamaCppMemory]) -> tuple[float, float]:
    """How many tensors as wide as the model live beside the logits, and beside the scores.

    Each log says one equation, of the stage whose known part is larger; divided by the log's own size, so that least
    squares are of relative errors.
    """
    rows, rest = [], []
    for log in logs:
        logits, attention, width = stages(log)
        share = width / log.compute_bytes
        rows.append([share, 0.0] if logits > attention else [0.0, share])
        rest.append(1 - max(logits, attention) / log.compute_bytes)
    (beside_logits, beside_scores), *_ = np.linalg.lstsq(np.array(rows), np.array(rest), rcond=None)
    return float(beside_logits), float(beside_scores)


def predicted(log: LlamaCppMemory) -> float:
    return llamacpp_compute(
        log.hidden, log.heads, log.vocab, log.context, ubatch=log.ubatch, flash_attention=log.flash_attention
    )


def fit_vllm(logs: Sequence[VllmMemory]) -> float:
    """Copies of the logits in the activations, by least squares of the relative error."""
    shares = np.array([4 * log.sequences * log.vocab / log.activation_bytes for log in logs])
    (copies,), *_ = np.linalg.lstsq(shares[:, None], np.ones(len(logs)), rcond=None)
    return float(copies)


def told(errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    unseen = f"on {len(errors)} other logs"
    return f"at most {max(sizes):.1%}, median {statistics.median(sizes):.1%}, {unseen}".replace("%", " %")


def test_the_constants_of_llamacpp_follow_from_the_logs() -> None:
    assert fit_llamacpp(GPU[::2]) == pytest.approx((LLAMACPP_BESIDE_LOGITS, LLAMACPP_BESIDE_SCORES), abs=5e-4)


def test_llamacpp_on_logs_that_were_not_fitted() -> None:
    unseen = GPU[1::2]
    errors = [predicted(log) / log.compute_bytes - 1 for log in unseen]
    assert told(errors) == LLAMACPP_ERROR
    assert max(errors) < 0.001
    assert {log.flash_attention for log in unseen} == {False, True}


def test_llamacpp_on_the_cpu() -> None:
    """Never fitted: the graph is the same there, and the buffer holds its inputs too."""
    logs = [log for log in llamacpp_memory() if log.device == "cpu"]
    assert all(predicted(log) == pytest.approx(log.compute_bytes, rel=0.03) for log in logs)


def test_llamacpp_by_hand() -> None:
    """A model of 4096 wide and 32 heads at 8192 tokens: 512 MiB of scores, 16 of mask, 4 x 8 beside them."""
    assert llamacpp_compute(4096, 32, 128256, 8192, flash_attention=False) == pytest.approx(560 * MIB, rel=1e-3)
    assert llamacpp_compute(4096, 32, 128256, 8192) == pytest.approx(258.5 * MIB, rel=1e-3)
    assert llamacpp_compute(4096, 32, 128256, 8192, ubatch=1024) == pytest.approx(517 * MIB, rel=1e-3)


def test_the_constant_of_vllm_follows_from_the_logs() -> None:
    assert fit_vllm(TEXT[::2]) == pytest.approx(VLLM_COPIES, abs=5e-4)


def test_vllm_on_logs_that_were_not_fitted() -> None:
    unseen = TEXT[1::2]
    errors = [VLLM_COPIES * 4 * log.sequences * log.vocab / log.activation_bytes - 1 for log in unseen]
    assert VLLM_ERROR.startswith(f"activations {told(errors)}")


def test_vllm_by_hand() -> None:
    one, two = vllm_overhead(128256, sequences=1024), vllm_overhead(128256, sequences=1024, gpus=2)
    assert one == pytest.approx((4.80 + 0.39 + 0.13) * GIB, rel=0.005)
    assert two - one == pytest.approx(0.42 * GIB, rel=0.01)
    assert vllm_overhead(128256) < one / 2


def test_the_stated_spread_of_vllm() -> None:
    graphs = sorted(round(log.graph_bytes / GIB, 2) for log in vllm_memory() if log.graph_bytes is not None)
    assert [graph for graph in graphs if graph > 0] == [0.10, 0.39, 1.03]
    assert len(graphs) == 8
    alone = sorted(round(log.non_torch_bytes / GIB, 2) for log in TEXT if log.gpus == 1)
    pairs = sorted(round(log.non_torch_bytes / GIB, 2) for log in TEXT if log.gpus == 2)
    assert (alone[0], statistics.median(alone), alone[-1]) == (0.03, 0.13, 1.79)
    assert pairs == [0.54, 0.55, 3.58]


def test_a_cuda_context() -> None:
    assert CUDA_CONTEXT == 319.25 * MIB


def test_records_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        quality()[0].value = 0.0  # type: ignore[misc]
