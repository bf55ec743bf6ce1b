"""The evaluation loop, on fake models whose logits are known."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from bitsmith.errors import FileError, TensorError, UsageError
from bitsmith.evaluation import measure as module
from bitsmith.evaluation.measure import evaluate
from bitsmith.evaluation.perplexity import token_losses
from bitsmith.system.progress import Progress


@dataclass(frozen=True)
class Bytes:
    """One token a byte of UTF-8, plus `shift`; a start token where asked for."""

    adds_bos: bool = False
    bos: int | None = None
    shift: int = 0

    def encode(self, text: str, *, add_special: bool) -> Sequence[int]:
        start = [self.bos] if add_special and self.adds_bos and self.bos is not None else []
        return start + [byte + self.shift for byte in text.encode()]


@dataclass(frozen=True)
class Shape:
    context: int = 64
    vocab: int = 300


@dataclass(frozen=True)
class Bigram:
    """Logits depend on the position and the last token; `noise` sets two models apart; `seen` keeps the inputs."""

    name: str = "fake.gguf"
    config: Shape = field(default_factory=Shape)
    tokenizer: Bytes = field(default_factory=Bytes)
    noise: float = 0.0
    seen: list[np.ndarray] = field(default_factory=list)

    def logits(self, tokens: np.ndarray, *, first: int = 0) -> np.ndarray:
        self.seen.append(tokens.copy())
        table = np.random.default_rng(5).normal(0, 2, (300, 400))
        table += self.noise * np.random.default_rng(6).normal(0, 1, table.shape)
        positions = np.arange(first, tokens.shape[1])[None, :, None]
        return (table[tokens[:, first:], : self.config.vocab] * (1 + 0.01 * positions)).astype(np.float32)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text("".join(chr(97 + i % 23) for i in range(16 * 21 + 7)), encoding="utf-8")
    return path


def direct_losses(model: Bigram, ids: list[int], context: int, start: int | None = None) -> np.ndarray:
    """Window by window, target by target, from the logits of all positions."""
    losses = []
    for at in range(0, len(ids) - context + 1, context):
        window = np.array(ids[at : at + context])
        if start is not None:
            window[0] = start
        logits = model.logits(window[None])[0]
        for position in range(context // 2, context - 1):
            losses.append(token_losses(logits[position : position + 1], window[position + 1 : position + 2])[0])
    return np.array(losses)


@pytest.mark.parametrize("start", [None, 256])
def test_perplexity_equals_a_direct_loop(text: Path, start: int | None) -> None:
    tokenizer = Bytes(adds_bos=start is not None, bos=start)
    result = evaluate(Bigram(tokenizer=tokenizer), text=text, context=16)
    ids = list(tokenizer.encode(text.read_text(), add_special=True))
    losses = direct_losses(Bigram(), ids, 16, start)
    assert (result.windows, result.tokens) == (21, 21 * 7)
    assert losses.size == result.tokens
    assert result.loss.value == pytest.approx(losses.mean(), rel=1e-12)
    assert result.loss.error == pytest.approx(losses.std(ddof=1) / np.sqrt(losses.size), rel=1e-10)
    assert result.perplexity.value == pytest.approx(np.exp(losses.mean()), rel=1e-12)
    assert result.divergence is None


def test_batches_do_not_matter(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(Bigram(noise=0.1), against=Bigram(), text=text, context=16)
    for logits in (1, 5 * 8 * 300):
        monkeypatch.setattr(module, "BATCH_LOGITS", logits)
        parts = evaluate(Bigram(noise=0.1), against=Bigram(), text=text, context=16)
        assert parts.windows == whole.windows
        assert parts.loss.value == pytest.approx(whole.loss.value, rel=1e-12)
        assert parts.divergence is not None
        assert whole.divergence is not None
        assert parts.divergence.kld.value == pytest.approx(whole.divergence.kld.value, rel=1e-12)
        assert parts.divergence.kld.error == pytest.approx(whole.divergence.kld.error, rel=1e-9)
        assert parts.divergence.kld_99 == whole.divergence.kld_99


def test_against_itself_nothing_diverges(text: Path) -> None:
    result = evaluate(Bigram(), against=Bigram(name="reference"), text=text, context=16)
    assert result.divergence is not None
    assert result.divergence.kld.value == 0.0
    assert result.divergence.top1.value == 1.0
    assert result.divergence.ratio.value == 1.0
    assert result.divergence.reference_perplexity == result.perplexity


def test_against_another_both_perplexities_are_their_own(text: Path) -> None:
    result = evaluate(Bigram(noise=0.2), against=Bigram(name="reference"), text=text, context=16)
    alone, reference = (evaluate(Bigram(noise=noise), text=text, context=16) for noise in (0.2, 0.0))
    assert result.perplexity.value == pytest.approx(alone.perplexity.value, rel=1e-12)
    assert result.divergence is not None
    assert result.divergence.reference_perplexity.value == pytest.approx(reference.perplexity.value, rel=1e-12)
    assert result.divergence.ratio.value == pytest.approx(
        alone.perplexity.value / reference.perplexity.value, rel=1e-12
    )
    assert result.divergence.kld.value > 0.0


def test_wider_vocabulary_is_compared_on_the_common_tokens(text: Path) -> None:
    padded = Bigram(config=Shape(vocab=310))
    result = evaluate(padded, against=Bigram(), text=text, context=16)
    assert result.divergence is not None
    assert result.divergence.vocab == 300
    assert result.divergence.kld.value == pytest.approx(0.0, abs=1e-12)
    assert result.perplexity.value > result.divergence.reference_perplexity.value


def test_no_token_beyond_the_window_is_shown(text: Path) -> None:
    model = Bigram()
    evaluate(model, text=text, context=16)
    assert all(tokens.shape[1] == 15 and tokens.dtype == np.int64 for tokens in model.seen)


def test_progress_counts_windows(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_TOKENS", 8 * 16)
    reports: list[Progress] = []
    evaluate(Bigram(), text=text, context=16, report=reports.append)
    assert [each.done for each in reports] == [0, 8, 16, 21]
    assert {(each.stage, each.total, each.unit) for each in reports} == {("evaluate", 21, "windows")}


def test_max_windows(text: Path) -> None:
    assert evaluate(Bigram(), text=text, context=16, max_windows=4).windows == 4
    assert evaluate(Bigram(), text=text, context=16, max_windows=400).windows == 21
    with pytest.raises(UsageError, match="max_windows=0: expected 1 or more"):
        evaluate(Bigram(), text=text, context=16, max_windows=0)


def test_result_is_ready_for_json(text: Path) -> None:
    result = evaluate(Bigram(noise=0.1), against=Bigram(name="reference"), text=str(text), context=16)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["model"] == "fake.gguf"
    assert data["against"] == "reference"
    assert data["text"] == "story.txt"
    assert len(data["text_sha256"]) == 64
    assert data["divergence"]["kld"].keys() == {"value", "error"}
    assert data["divergence"]["reference_perplexity"]["value"] > 1.0
    assert evaluate(Bigram(), text=text, context=16).to_dict()["divergence"] is None


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Bytes(shift=1), "token 0 is 97 in the first and 98 in the second"),
        (Bytes(adds_bos=True, bos=256), "no start token and start token 256"),
    ],
)
def test_tokenizers_that_differ(text: Path, tokenizer: Bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(Bigram(), against=Bigram(name="other", tokenizer=tokenizer), text=text, context=16)


def test_tokens_that_the_model_lacks(text: Path) -> None:
    with pytest.raises(UsageError, match="do not belong together"):
        evaluate(Bigram(config=Shape(vocab=110)), text=text, context=16)


def test_contexts_of_both_models_are_checked(text: Path) -> None:
    with pytest.raises(UsageError, match=r"fake\.gguf: a context of 66"):
        evaluate(Bigram(), text=text, context=66)
    with pytest.raises(UsageError, match="short: a context of 64"):
        evaluate(Bigram(), against=Bigram(name="short", config=Shape(context=32)), text=text, context=64)


@pytest.mark.parametrize("noise", [np.nan, np.inf])
def test_logits_that_are_not_finite_name_the_model(text: Path, noise: float) -> None:
    damaged = Bigram(name="damaged.gguf", noise=noise)
    for model, against in [(damaged, None), (damaged, Bigram()), (Bigram(), damaged)]:
        with pytest.raises(TensorError, match=r"damaged\.gguf: .* 147 of 147 predictions"):
            evaluate(model, against=against, text=text, context=16)


def test_text_shorter_than_a_window(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("brief")
    with pytest.raises(FileError, match=r"short\.txt: the text has 5 tokens"):
        evaluate(Bigram(), text=path, context=16)


def test_statistics_do_not_import_torch() -> None:
    code = "import sys, bitsmith.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
