"""Perplexity and divergence against llama.cpp: its program's printed figures, and its logits through our statistics.

The figures are llama-perplexity's (build 11434, one thread, `-c 256 -b 256`, float32 GGUF as the base of
`--kl-divergence`) on this project's LICENSE file. It stores the base's log probabilities in 16 bits, cut off at -16:
hence the tolerances of quantiles and of the top-1 agreement.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.evaluation import Evaluation, evaluate
from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime.language_model import LanguageModel
from tests.oracle import llama

LICENSE = Path(__file__).parents[2] / "LICENSE"
CONTEXT = 256


@pytest.fixture(scope="module")
def reference() -> LanguageModel:
    return bitsmith.load("reference", kernel="exact")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the reference model by format; the 4-bit one in one type throughout, whose bytes equal llama.cpp's."""
    folder = tmp_path_factory.mktemp("made")
    paths = {name: folder / f"{name}.gguf" for name in ("f16", "q8_0", "q4_0", "q4_k_m")}
    for name, path in paths.items():
        bitsmith.quantize("reference", to=name, out=path, pure=name == "q4_0")
    return paths


def measured(model: LanguageModel, against: LanguageModel | None = None) -> Evaluation:
    return evaluate(model, against=against, text=LICENSE, context=CONTEXT)


def test_the_text_is_the_one_llama_perplexity_read() -> None:
    digest = hashlib.sha256(LICENSE.read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_perplexity_of_the_original(reference: LanguageModel) -> None:
    result = measured(reference)
    assert (result.windows, result.tokens) == (12, 12 * 127)
    assert result.perplexity.value == pytest.approx(99.6329, rel=1e-5)
    assert result.perplexity.error == pytest.approx(7.01919, rel=1e-4)


def test_perplexity_with_a_start_token(reference: LanguageModel) -> None:
    @dataclass(frozen=True)
    class Starting:
        bos: int = 0
        adds_bos: bool = True

        def encode(self, text: str, *, add_special: bool) -> Sequence[int]:
            return [self.bos] * add_special + list(reference.tokenizer.encode(text, add_special=False))

    starting = LanguageModel("starting", reference.decoder, Starting())  # type: ignore[arg-type]
    result = measured(starting)
    assert result.perplexity.value == pytest.approx(98.2566, rel=1e-5)
    assert result.perplexity.error == pytest.approx(6.90464, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"), [("f16", 99.6334, 1e-3), ("q8_0", 99.7967, 3e-3), ("q4_0", 102.1861, 3e-3)]
)
def test_perplexity_of_files(made: dict[str, Path], name: str, expected: float, tolerance: float) -> None:
    """Of quantized files llama.cpp's differs by its 8-bit activations."""
    loss = measured(bitsmith.load(made[name], kernel="exact"))
    assert loss.perplexity.value == pytest.approx(expected, rel=tolerance)


def test_divergence_of_exact_q4_0_weights(reference: LanguageModel, made: dict[str, Path]) -> None:
    """llama-perplexity here ran the Q4_0 weights decoded to float32, so that no activations were rounded."""
    result = measured(bitsmith.load(made["q4_0"], kernel="exact"), reference)
    lost = result.divergence
    assert lost is not None
    assert result.perplexity.value == pytest.approx(102.165041, rel=3e-5)
    assert result.perplexity.error == pytest.approx(7.211245, rel=1e-4)
    assert lost.reference_perplexity.value == pytest.approx(99.632938, rel=1e-5)
    assert math.log(lost.ratio.value) == pytest.approx(0.025097, abs=2e-5)
    assert lost.log_ratio.error == pytest.approx(0.004841, rel=1e-3)
    assert lost.kld.value == pytest.approx(0.016428, rel=3e-4)
    assert lost.kld.error == pytest.approx(0.000220, rel=3e-3)
    assert lost.kld_median == pytest.approx(0.014767, rel=1e-3)
    assert lost.kld_99 == pytest.approx(0.050421, rel=3e-3)
    assert lost.kld_999 == pytest.approx(0.081148, rel=3e-3)
    assert lost.kld_max == pytest.approx(0.088987, rel=3e-3)
    assert lost.delta_p.value == pytest.approx(-0.00141, abs=1e-5)
    assert lost.delta_p.error == pytest.approx(0.00053, abs=1e-5)
    assert lost.delta_p_rms.value == pytest.approx(0.02076, abs=1e-5)
    assert lost.delta_p_rms.error == pytest.approx(0.00110, abs=1e-5)
    assert lost.top1.value == pytest.approx(0.88583, abs=0.001)
    assert lost.top1.error == pytest.approx(0.00815, abs=5e-5)


@dataclass(frozen=True)
class Oracle:
    """llama.cpp as a model to evaluate: its tokenizer, its logits."""

    name: str
    config: ModelConfig
    file: llama.Llama
    adds_bos: bool = False

    @property
    def tokenizer(self) -> Oracle:
        return self

    @property
    def bos(self) -> int:
        return self.file.bos

    def encode(self, text: str, *, add_special: bool) -> Sequence[int]:
        return self.file.tokenize(text, add_special)

    def logits(self, tokens: np.ndarray, *, first: int = 0) -> np.ndarray:
        return np.stack([self.file.logits(window)[first:] for window in tokens])


@pytest.mark.parametrize(("name", "tolerance", "divergence"), [("f16", 1e-3, 1e-6), ("q4_k_m", 3e-3, 1e-3)])
def test_logits_of_llama_cpp_give_the_same_perplexity(
    made: dict[str, Path], name: str, tolerance: float, divergence: float
) -> None:
    ours = bitsmith.load(made[name], kernel="exact")
    file = llama.load(made[name])
    try:
        result = evaluate(ours, against=Oracle("llama.cpp", ours.config, file), context=CONTEXT, max_windows=8)
    finally:
        file.close()
    lost = result.divergence
    assert lost is not None
    assert lost.ratio.value == pytest.approx(1.0, abs=tolerance)
    assert abs(lost.kld.value) < divergence
