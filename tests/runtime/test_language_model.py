"""The public object: text in, text out, logits, how a checkpoint becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import FileError, UsageError
from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.gguf_config import config_to_gguf
from bitsmith.models.arch.names import hf_name, is_permuted, permute_rows
from bitsmith.models.arch.tensors import expected_tensors
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.models.overrides import Overrides
from bitsmith.runtime.generate import Generated, generate
from bitsmith.runtime.language_model import LanguageModel
from bitsmith.runtime.sampling import GREEDY, Sampling
from bitsmith.runtime.text_stream import GenerationStats, TimedTokens
from bitsmith.runtime.torch import model as torch_model
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.model import choose_kernel, dense_bytes
from bitsmith.runtime.torch.model import load_torch_model as load_language_model
from bitsmith.runtime.torch.ondemand import OnDemandKernel
from tests.gguf_files import write_gguf
from tests.runtime.small import TINY, decoder_of, random_tensors

CONFIG = replace(TINY, rope=Rope(dim=8), vocab=128)


@dataclass(frozen=True)
class _Letters:
    """A tokenizer of ASCII characters; 0 starts a text."""

    bos: int | None = 0
    adds_bos: bool = True
    end_ids: frozenset[int] = frozenset()
    size: int = 128
    longest: int = 16

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        return [0] * (add_special and self.adds_bos) + [ord(letter) for letter in text]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [0, *(ord(letter) for message in messages for letter in f"{message['role']}:{message['content']};")]

    def stream(self, *, continues: bool) -> _Joined:
        return _Joined()


class _Joined:
    """Holds every second letter back, as a decoder does with unfinished characters."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, token: int) -> str:
        self._held += chr(token)
        return self.finish() if len(self._held) == 2 else ""

    def finish(self) -> str:
        text, self._held = self._held, ""
        return text


def _text(ids: Sequence[int]) -> str:
    return "".join(chr(token) for token in ids)


def _model(tokenizer: Any = _Letters(), config: ModelConfig = CONFIG) -> LanguageModel:
    return LanguageModel("tiny", decoder_of(config, random_tensors(config)), tokenizer)


def test_logits() -> None:
    model, tokens = _model(), np.arange(12).reshape(2, 6)
    logits = model.logits(tokens, first=2)
    assert isinstance(logits, np.ndarray)
    assert (logits.shape, logits.dtype) == ((2, 4, 128), np.float32)
    np.testing.assert_allclose(logits, model.logits(tokens)[:, 2:], atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_of_a_token_are_those_of_all_matrices_but_the_embedding(tied: bool) -> None:
    model = _model(config=replace(CONFIG, tied=tied))
    matrices = {name: shape for name, shape in expected_tensors(model.config).items() if len(shape) == 2}
    left_out = () if tied else ("token_embd.weight",)
    assert model.token_bytes == sum(4 * np.prod(matrices[name]) for name in matrices if name not in left_out)


def test_stream_is_the_generated_text() -> None:
    model = _model()
    ids = [item.token for item in generate(model.decoder, [0, 72, 105], max_tokens=9, sampling=GREEDY)]
    assert "".join(model.stream("Hi", max_tokens=9, sampling=GREEDY)) == _text(ids)
    assert model.generate([0, 72, 105], max_tokens=9, sampling=GREEDY) == _text(ids)


def test_end_tokens_are_not_shown() -> None:
    text = _model().generate("Hi", max_tokens=9, sampling=GREEDY)
    end = text[3]
    model = _model(_Letters(end_ids=frozenset({ord(end)})))
    assert model.generate("Hi", max_tokens=9, sampling=GREEDY) == text[: text.index(end)]
    assert model.generate_batch(["Hi", "Hi"], max_tokens=9, sampling=GREEDY) == [text[: text.index(end)]] * 2


def test_rows_that_pad_the_embedding_are_not_shown() -> None:
    text = _model().generate("Hi", max_tokens=9, sampling=GREEDY)
    size = sorted(map(ord, text))[len(text) // 2]
    shown = _model(_Letters(size=size)).generate("Hi", max_tokens=9, sampling=GREEDY)
    assert shown == "".join(letter for letter in text if ord(letter) < size)
    assert shown != text


def test_sampling_by_keyword() -> None:
    model = _model()
    warm = Sampling(temperature=1.5, top_k=7, seed=3)
    expected = model.generate("Hi", max_tokens=9, sampling=warm)
    assert model.generate("Hi", max_tokens=9, temperature=1.5, top_k=7, seed=3) == expected
    assert model.generate("Hi", max_tokens=9, sampling=replace(warm, seed=4), seed=3) == expected
    assert "".join(model.stream("Hi", max_tokens=9, temperature=1.5, top_k=7, seed=3)) == expected
    assert model.generate_batch(["Hi"], max_tokens=9, temperature=1.5, top_k=7, seed=3) == [expected]
    assert model.chat("A", max_tokens=9, temperature=0) == model.generate(
        [0, *map(ord, "user:A;")], max_tokens=9, temperature=0
    )
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}]
    streamed = "".join(model.stream_chat(messages, max_tokens=9, temperature=0))
    assert streamed == model.chat(messages, max_tokens=9, temperature=0)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'temprature'. Did you mean 'temperature'"):
        model.generate("Hi", temprature=0)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="temperature=-1: expected 0 or more"):
        model.chat("Hi", temperature=-1)
    assert "temperature" in str(signature(model.generate))


def test_its_repr_is_short() -> None:
    assert repr(_model()) == "LanguageModel('tiny', llama, 2 layers of 32, context 64)"


def test_figures_of_a_stream() -> None:
    model = _model()
    stream = model.stream("Hello", max_tokens=4, temperature=0)
    assert stream.stats == GenerationStats(prompt_tokens=6, reused_tokens=0)
    assert (stream.stats.prompt_rate, stream.stats.generation_rate) == (None, None)
    list(stream)
    assert (stream.stats.generated_tokens, stream.stats.reason) == (4, "length")
    assert model.stream("Help").stats.reused_tokens == 4
    seconds = iter([0.0, 2.0, 10.0, 10.5, 20.0, 20.5])  # the caller's time between tokens does not count
    tokens = iter([Generated(1), Generated(2), Generated(3, "end")])
    timed = TimedTokens(tokens, prompt_tokens=10, reused_tokens=4, clock=lambda: next(seconds))
    list(timed)
    assert timed.stats == GenerationStats(10, 4, 3, 2.0, 1.0, "end")
    assert (timed.stats.prompt_rate, timed.stats.generation_rate) == (3.0, 2.0)
    assert timed.stats.to_dict()["prompt_rate"] == 3.0


def test_without_a_limit_the_context_ends_the_text() -> None:
    stream = _model().stream("Hello", max_tokens=None, temperature=0)
    list(stream)
    assert (stream.stats.generated_tokens, stream.stats.reason) == (64 - 6 + 1, "context")


def test_no_end_token_means_no_early_end() -> None:
    model = _model(_Letters(end_ids=frozenset()))
    assert len(model.generate("Hi", max_tokens=40, temperature=0)) == 40


def test_chat_ids() -> None:
    assert _model().chat_ids([{"role": "user", "content": "A"}]) == [0, *map(ord, "user:A;")]


def test_batch_equals_alone() -> None:
    model = _model()
    prompts: list[str | Sequence[int]] = ["Hi", "a longer prompt", [0, 65]]
    alone = [model.generate(prompt, max_tokens=6, sampling=GREEDY) for prompt in prompts]
    assert model.generate_batch(prompts, max_tokens=6, sampling=GREEDY) == alone


def test_the_next_turn_is_computed_from_where_it_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    fed: list[int] = []
    real = model.decoder.prefill

    def counted(tokens: np.ndarray, *rest: Any) -> Any:
        fed.append(tokens.shape[1])
        return real(tokens, *rest)

    monkeypatch.setattr(model.decoder, "prefill", counted)
    answer = model.generate("Hello", max_tokens=5, sampling=GREEDY)
    for prompt, new in [(f"Hello{answer}Bye", 4), ("Help", 1), ("Help", 1), ("other", 5)]:
        fed.clear()
        expected = _model().generate(prompt, max_tokens=5, sampling=GREEDY)
        assert model.generate(prompt, max_tokens=5, sampling=GREEDY) == expected
        assert fed == [new, 1, 1, 1, 1]


def test_a_stream_closed_early_leaves_a_sound_cache() -> None:
    model = _model()
    stream = model.stream("Hello", max_tokens=20, sampling=GREEDY)
    next(stream)
    stream.close()
    again = model.generate("Hello", max_tokens=8, sampling=GREEDY)
    assert again == _model().generate("Hello", max_tokens=8, sampling=GREEDY)


def test_two_streams_at_once() -> None:
    model = _model()
    model.generate("Hello", max_tokens=2, sampling=GREEDY)
    first = model.stream("Hello", max_tokens=6, sampling=GREEDY)
    second = model.stream("Hella", max_tokens=6, sampling=GREEDY)
    texts = ["", ""]
    for one, two in zip(first, second, strict=True):
        texts[0] += one
        texts[1] += two
    assert texts == [_model().generate(prompt, max_tokens=6, sampling=GREEDY) for prompt in ("Hello", "Hella")]


def test_empty_prompt() -> None:
    assert _model().prompt_ids("") == [0]
    assert _model(_Letters(adds_bos=False)).prompt_ids("") == [0]
    with pytest.raises(UsageError, match="empty"):
        _model(_Letters(bos=None, adds_bos=False)).prompt_ids("")


def test_prompt_beyond_the_context_fails_at_once() -> None:
    with pytest.raises(UsageError, match="the prompt has 65 tokens, but the context holds 64"):
        _model().stream("x" * 64, max_tokens=5)
    with pytest.raises(UsageError, match="2,000 characters, but a context of 64 tokens holds 1,024 at most"):
        _model().stream("x" * 2000, max_tokens=5)  # not even encoded


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "expected at least one"),
        ([{"role": "user"}], 'message 1 has no "content"'),
        ([{"role": "wizard", "content": "hi"}], "message 1: unknown role 'wizard'; known are system"),
        (["hi"], "message 1: expected"),
    ],
)
def test_wrong_messages_are_named(messages: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        _model().chat(messages)


def test_a_prompt_is_text_or_tokens() -> None:
    with pytest.raises(UsageError, match="expected a text or a list of token ids"):
        _model().generate(["a"])  # type: ignore[list-item]


def test_choice_of_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = sum(int(np.prod(shape)) for shape in expected_tensors(CONFIG).values())
    assert dense_bytes(CONFIG) == 4 * parameters
    assert dense_bytes(CONFIG, "bfloat16") == 2 * parameters
    for room, dense in [(8 * parameters, True), (8 * parameters - 1, False), (None, True)]:
        monkeypatch.setattr(torch_model, "available_memory", lambda room=room: room)
        expected = DenseKernel if dense else OnDemandKernel
        assert isinstance(choose_kernel(CONFIG, dtype="float32", dense=None), expected)
    assert isinstance(choose_kernel(CONFIG, dtype="float32", dense=True), DenseKernel)
    assert isinstance(choose_kernel(CONFIG, dtype="float32", dense=False), OnDemandKernel)
    with pytest.raises(UsageError, match="int4"):
        choose_kernel(CONFIG, dtype="int4", dense=False)


@dataclass(frozen=True)
class _Checkpoint:
    source: Any
    config: ModelConfig
    naming: str
    name: str = "x"
    ignored: frozenset[str] = frozenset()
    overrides: Overrides = field(default_factory=Overrides)

    def tokenizer(self) -> Any:
        return _Letters()


def test_loading_hugging_face_names_and_gguf_names_agree(tmp_path: Path) -> None:
    reference = open_checkpoint("reference")
    config = replace(reference.config, layers=2)
    short = {name: reference.source.rows(name) for name in reference.source.tensors}
    hf = load_language_model(_Checkpoint(_Rows(reference.source, config), config, "hf"))  # type: ignore[arg-type]
    stored = {}
    for name, shape in expected_tensors(config).items():
        values = short[str(hf_name(name))].reshape(shape)
        if is_permuted(name):
            values = permute_rows(values, config.heads if "attn_q" in name else config.kv_heads)
        stored[name] = values
    write_gguf(tmp_path / "x.gguf", config_to_gguf(config, name="x"), stored)
    tokens = np.arange(20)[None] + 100
    with GgufSource(tmp_path / "x.gguf") as source:
        interleaved = replace(config, rope=replace(config.rope, interleaved=True))
        for dense in (True, False):
            gguf = load_language_model(_Checkpoint(source, interleaved, "gguf"), dense=dense)  # type: ignore[arg-type]
            np.testing.assert_allclose(gguf.logits(tokens), hf.logits(tokens), atol=1e-4)
        half = load_language_model(_Checkpoint(source, interleaved, "gguf"), dtype="bfloat16")  # type: ignore[arg-type]
        assert half.decoder.weights.output.prepared.dtype is torch.bfloat16
        difference = np.abs(half.logits(tokens) - hf.logits(tokens)).max()
        assert 0 < difference < 0.5


class _Rows:
    """The first layers of a source."""

    def __init__(self, source: Any, config: ModelConfig) -> None:
        names = [str(hf_name(name)) for name in expected_tensors(config)]
        self.path, self.rows = source.path, source.rows
        self.input_rounding, self.extent = source.input_rounding, source.extent
        self.tensors = {name: source.tensors[name] for name in names}


def test_more_layers_promised_than_there_are() -> None:
    reference = open_checkpoint("reference")
    promised = replace(reference.config, layers=9)
    with pytest.raises(FileError, match=r"9 layers.*model\.layers\.8\."):
        load_language_model(_Checkpoint(reference.source, promised, "hf"))  # type: ignore[arg-type]


def test_threads_are_set_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = open_checkpoint("reference")
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    config = replace(reference.config, layers=1)
    checkpoint: Any = _Checkpoint(_Rows(reference.source, config), config, "hf")
    load_language_model(checkpoint)
    assert asked == []
    load_language_model(checkpoint, threads=3)
    assert asked == [3]


def test_the_reference_model_speaks() -> None:
    model = load_language_model(open_checkpoint("reference"))
    text = model.generate("The word that", max_tokens=16, sampling=GREEDY)
    assert len(text.split()) > 5
    assert text == "".join(model.stream(model.prompt_ids("The word that"), max_tokens=16, sampling=GREEDY))
    assert model.chat_ids([{"role": "user", "content": "Hello"}])
