"""The C++ decoder against the torch one: every packed type, every instruction set, every variant of the network."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitsmith.containers.gguf.blocks import CODECS
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import FileError, UsageError
from bitsmith.models.arch.config import Experts, ModelConfig, Rope
from bitsmith.quant.rounders.nearest import nearest
from bitsmith.quant.tensor import QuantTensor
from bitsmith.runtime.core_decoder import CoreDecoder
from bitsmith.runtime.core_loader import load_core
from bitsmith.runtime.decoder import Decoder
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.torch.dense import DenseKernel
from bitsmith.runtime.torch.ops import TorchOps
from bitsmith.runtime.types import CACHES, FLOATS, PACKED
from bitsmith.runtime.weights import load_weights
from bitsmith.system.core import core
from tests.gguf_files import Stored, write_gguf
from tests.runtime.slots import run_slots, sequences
from tests.runtime.small import TINY, random_tensors

pytestmark = pytest.mark.skipif(core() is None, reason="no C++ core")

CONFIG = ModelConfig(
    arch="llama",
    layers=2,
    hidden=256,
    intermediate=512,
    heads=8,
    kv_heads=2,
    head_dim=32,
    vocab=300,
    context=256,
    norm_eps=1e-5,
    rope=Rope(dim=32, interleaved=True),
)
LONG = Rope(
    dim=24,
    scaling="longrope",
    original_context=45,
    attention_factor=1.2,
    freq_factors=tuple(np.linspace(1, 2, 12).tolist()),
    long_factors=tuple(np.linspace(1, 6, 12).tolist()),
)
GEMMA4 = replace(
    CONFIG,
    arch="gemma4_text",
    layers=6,
    qk_norm=True,
    tied=True,
    activation="gelu_tanh",
    attention_scale=0.2,
    rope=Rope(dim=64, theta=1e6, freq_factors=(1.0,) * 8 + (1e30,) * 24),
    local_rope=Rope(dim=32),
    window=9,
    window_layers=(0, 1, 2, 4),
    full_head_dim=64,
    shared_layers=2,
    wide_shared=True,
    layer_width=256,
)
VARIANTS = {
    "plain": CONFIG,
    "biased": replace(CONFIG, qkv_bias=True, output_bias=True, mlp_bias=True),
    "qwen3": replace(CONFIG, qk_norm=True, tied=True, rope=Rope(dim=32)),
    "some-biased": replace(CONFIG, qkv_bias=True, biases=frozenset({"blk.1.attn_q", "blk.0.attn_v"})),
    "sliding": replace(CONFIG, window=9, window_layers=(1,)),
    "experts": replace(CONFIG, arch="qwen3_moe", qk_norm=True, experts=Experts(12, 3, 256), rope=Rope(dim=32)),
    "experts in some layers": replace(CONFIG, arch="olmoe", qk_norm=True, experts=Experts(4, 2, 256, False, (1,))),
    "softcap": replace(
        CONFIG, arch="gemma2", activation="gelu_tanh", attention_softcap=3.0, attention_scale=0.3, rope=Rope(dim=32)
    ),
    "sinks": replace(
        CONFIG,
        arch="gpt_oss",
        activation="clamped",
        experts=Experts(4, 2, 256),
        rope=Rope(dim=32),
        window=9,
        window_layers=(0,),
        qkv_bias=True,
        output_bias=True,
    ),
    "longrope": replace(CONFIG, arch="phi3", rope=LONG),
    "layers of two shapes": GEMMA4,
    "layers of two shapes, no sharing": replace(
        GEMMA4, shared_layers=0, wide_shared=False, layer_width=0, keys_as_values=True, full_kv_heads=1
    ),
    "narrow heads": replace(CONFIG, heads=4, kv_heads=4, head_dim=40, rope=Rope(dim=24)),
}
ISAS = core().isas() if core() else []  # type: ignore[union-attr]
RNG = np.random.default_rng(5)
TOKENS = RNG.integers(0, CONFIG.vocab, (2, 75))


@cache
def source_of(config: ModelConfig, layout: str, folder: Path) -> GgufSource:
    """A GGUF file with matrices of one type, random weights of realistic size."""
    tensors: dict[str, np.ndarray | Stored] = {}
    for name, values in random_tensors(config).items():
        w = values * (1.0 if values.ndim == 1 else 0.2)
        tensors[name] = np.asarray(w, np.float32) if values.ndim == 1 else _stored(w.astype(np.float32), layout)
    path = folder / f"{layout}-{abs(hash(config))}.gguf"
    write_gguf(path, {}, tensors)
    return GgufSource(path)


def _stored(values: np.ndarray, layout: str) -> Stored:
    w = values.reshape(-1, values.shape[-1])
    if layout in CODECS:
        codec = CODECS[layout]
        codes, params = nearest(w, codec.format, None)
        return Stored(layout, values.shape, codec.encode(QuantTensor(codec.format, codes, params))["data"])
    from bitsmith.containers.floats import encode_float

    return Stored(layout, values.shape, encode_float(layout, w).reshape(len(w), -1).view(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("core")
    source_of.cache_clear()


def on_torch(config: ModelConfig, source: GgufSource) -> Decoder:
    ops = TorchOps()
    return Decoder(config, load_weights(config, lambda name: Weight.of(source, name), DenseKernel(), ops), ops)


def on_core(config: ModelConfig, source: Any, *, threads: int = 2, exact: bool = True, **options: Any) -> CoreDecoder:
    cache_type = options.pop("cache_type", "f32")
    read = lambda name: Weight.of(source, name)  # noqa: E731
    return load_core(config, read, threads=threads, exact=exact, cache_type=cache_type, **options)


def spread(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x - x.mean(-1, keepdims=True)))))


@pytest.mark.parametrize("layout", [*PACKED, *FLOATS])
@pytest.mark.parametrize("isa", ISAS)
def test_every_layout_on_every_instruction_set(layout: str, isa: str, folder: Path) -> None:
    source = source_of(CONFIG, layout, folder)
    expected = on_torch(CONFIG, source)
    logits = expected.numpy(expected.forward(TOKENS))
    scale = spread(logits)
    exact = on_core(CONFIG, source, isa=isa)
    np.testing.assert_allclose(exact.forward(TOKENS), logits, atol=2e-4 * scale)
    rounded = on_core(CONFIG, source, exact=False, isa=isa)
    many = rounded.forward(TOKENS)
    assert np.sqrt(np.mean(np.square(many - logits))) < 0.03 * scale
    for n in (1, 2, 3, 6):
        few = rounded.forward(TOKENS[:1, :n])
        assert np.abs(few - logits[:1, :n]).max() < (2e-3 if n == 1 else 0.15) * scale, n
    cache = rounded.new_cache(8)
    steps = np.stack([rounded.prefill(TOKENS[:1, i : i + 1], cache) for i in range(8)], axis=1)
    np.testing.assert_allclose(steps, logits[:1, :8], atol=4e-3 * scale)  # rows of one: rounded to 15 bits
    if layout in PACKED:
        fine = on_core(CONFIG, source, exact=False, fine=True, isa=isa)
        np.testing.assert_allclose(fine.forward(TOKENS), logits, atol=4e-3 * scale)  # and so are those of many
        np.testing.assert_array_equal(fine.forward(TOKENS[:1, :1]), rounded.forward(TOKENS[:1, :1]))
        np.testing.assert_allclose(
            fine.prefill(TOKENS[:, :3], fine.new_cache(3, batch=2)), logits[:, 2], atol=4e-3 * scale
        )


@pytest.mark.parametrize("isa", ISAS)
def test_every_scale_byte_of_nvfp4(isa: str, folder: Path) -> None:
    """One row, rows that share an unpacking, many rows, and rows that are not rounded: inputs of one column each."""
    tensors: dict[str, Any] = dict(random_tensors(CONFIG).items())
    blocks = np.full((CONFIG.vocab, 4, 36), 0x97, np.uint8)  # codes 7 and 9: 6 and -0.5
    blocks[..., :4] = (np.arange(CONFIG.vocab * 16) % 256).reshape(-1, 4, 4)
    name = "output.weight"
    tensors[name] = Stored("nvfp4", (CONFIG.vocab, CONFIG.hidden), blocks.reshape(CONFIG.vocab, -1))
    write_gguf(folder / "scales.gguf", {}, tensors)
    source = GgufSource(folder / "scales.gguf")
    w = np.asarray(Weight.of(source, name).rows(0, CONFIG.vocab), np.float64)
    hidden = np.eye(CONFIG.hidden, dtype=np.float32)[::8]  # both columns of each sub-block
    for exact in (True, False):
        decoder = on_core(CONFIG, source, exact=exact, isa=isa)
        for rows in (hidden[:1], hidden, np.tile(hidden, (3, 1))):
            expected = np.asarray(decoder.normed(rows), np.float64) @ w.T
            np.testing.assert_allclose(decoder.logits(rows), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("layout", ["q4_0", "q6_k", "nvfp4", "f16", "f32"])
def test_the_way_of_reading_changes_no_result(layout: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(CONFIG, layout, folder)
    module = core()
    assert module is not None
    results = []
    for way in range(len(module.readings)):
        monkeypatch.setenv("BITSMITH_READING", str(way))
        decoder = on_core(CONFIG, source, exact=False)
        assert {choice.chosen for choice in decoder.choices.readings} == {way}
        cache = decoder.new_cache(3)
        results.append(np.stack([decoder.prefill(TOKENS[:1, i : i + 1], cache) for i in range(3)]))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_network(name: str, folder: Path) -> None:
    config = VARIANTS[name]
    layout = "q8_0" if name == "narrow heads" else "q4_k"
    source = source_of(config, layout, folder)
    expected, ours = on_torch(config, source), on_core(config, source)
    for options in ({}, {"first": -3}):
        theirs = expected.numpy(expected.forward(TOKENS, **options))
        np.testing.assert_allclose(ours.forward(TOKENS, **options), theirs, atol=1e-3 * spread(theirs))
    their_cache, our_cache = (d.new_cache(75, batch=2) for d in (expected, ours))
    for part, counts in ((TOKENS[:, :40], [40, 29]), (TOKENS[:, 40:41], [1, 1]), (TOKENS[:, 41:], [34, 34])):
        theirs = expected.numpy(expected.prefill(part, their_cache, counts=np.array(counts), chunk=16))
        mine = ours.prefill(part, our_cache, counts=np.array(counts), chunk=16)
        np.testing.assert_allclose(mine, theirs, atol=1e-3 * spread(theirs))
    assert our_cache.lengths.tolist() == [75, 64]


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "longrope"])  # the longest of a step decides
@pytest.mark.parametrize("cache_type", CACHES)
def test_slots_of_different_lengths_equal_each_sequence_alone(name: str, cache_type: str, folder: Path) -> None:
    config = VARIANTS[name]
    ours = on_core(config, source_of(config, "q8_0", folder), cache_type=cache_type)
    alone = ours.forward(sequences(config.vocab))
    share = 2e-3 if cache_type == "q8_0" else 2e-4  # where a key lies between two codes, the order of a sum decides
    for sequence, position, logits in run_slots(ours):
        np.testing.assert_allclose(logits, alone[sequence, position], atol=share * spread(alone), rtol=0)


@pytest.mark.parametrize("layout", FLOATS)
def test_rows_of_any_length_of_floats(layout: str, folder: Path) -> None:
    config = replace(TINY, hidden=36, intermediate=50, head_dim=9, heads=4, kv_heads=2, rope=Rope(dim=8))
    source = source_of(config, layout, folder)
    expected, ours = on_torch(config, source), on_core(config, source)
    tokens = RNG.integers(0, config.vocab, (3, 20))
    for batch in (tokens, tokens[:1, :1], tokens[:1, :3]):
        np.testing.assert_allclose(ours.forward(batch), expected.numpy(expected.forward(batch)), atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache_type", CACHES)
def test_caches(cache_type: str, isa: str, folder: Path) -> None:
    source = source_of(CONFIG, "q6_k", folder)
    plain, ours = on_core(CONFIG, source, isa=isa), on_core(CONFIG, source, cache_type=cache_type, isa=isa)
    logits = plain.forward(TOKENS)
    tolerance = {"f32": 0.0, "f16": 3e-3, "q8_0": 0.15}[cache_type] * spread(logits)
    np.testing.assert_allclose(ours.forward(TOKENS), logits, atol=tolerance)
    cache = ours.new_cache(80, batch=2)
    whole = ours.prefill(TOKENS, cache)
    for slot in (0, 1):
        cache.truncate(slot, 30)
    cache = cache.grown(90)
    again = ours.prefill(TOKENS[:, 30:], cache)
    np.testing.assert_allclose(again, whole, atol=1e-5 + 1e-4 * spread(logits))
    assert (cache.lengths.tolist(), cache.capacity) == ([75, 75], 90)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("layout", ["q8_0", "q4_k", "q6_k"])
def test_few_sequences_share_a_step_and_change_no_bit(layout: str, fine: bool, folder: Path) -> None:
    decoder = on_core(CONFIG, source_of(CONFIG, layout, folder), exact=False, fine=fine)
    alone = []
    for sequence in range(3):
        cache = decoder.new_cache(20)
        alone.append(
            [decoder.prefill(TOKENS[None, 0, sequence * 20 + i : sequence * 20 + i + 1], cache) for i in range(8)]
        )
    cache = decoder.new_cache(20, batch=3)
    for i in range(8):
        together = decoder.prefill(TOKENS[0, i:60:20][:, None], cache)
        np.testing.assert_array_equal(together, np.concatenate([steps[i] for steps in alone]))


@pytest.mark.parametrize("layout", ["q4_k", "nvfp4"])
def test_threads_do_not_change_a_bit(layout: str, folder: Path) -> None:
    source = source_of(CONFIG, layout, folder)
    for exact in (True, False):
        one, *others = (on_core(CONFIG, source, threads=threads, exact=exact) for threads in (1, 2, 7))
        for other in others:
            np.testing.assert_array_equal(one.forward(TOKENS), other.forward(TOKENS))
            np.testing.assert_array_equal(one.forward(TOKENS[:1, :1]), other.forward(TOKENS[:1, :1]))


def test_damaged_weights_are_seen_in_the_logits(folder: Path) -> None:
    source = source_of(CONFIG, "q8_0", folder)

    def read(name: str) -> Weight:
        weight = Weight.of(source, name)
        if name != "blk.1.ffn_norm.weight":
            return weight
        return replace(weight, rows=lambda start, stop: np.full((1, CONFIG.hidden), np.nan, np.float32))

    for exact in (True, False):
        decoder = load_core(CONFIG, read, threads=1, exact=exact)
        for n in (1, 4):
            assert np.isnan(decoder.forward(TOKENS[:1, :n])).all()


def test_wrong_calls_are_refused(folder: Path) -> None:
    module: Any = core()
    source = source_of(CONFIG, "q4_k", folder)
    ours = on_core(CONFIG, source)
    other = on_core(VARIANTS["narrow heads"], source_of(VARIANTS["narrow heads"], "q8_0", folder))
    cache = ours.new_cache(75, batch=2).handle

    def fed(tokens: np.ndarray = TOKENS, **changed: list[int]) -> Any:
        numbers = {"slots": [0, 1], "starts": [0, 0], "counts": [75, 75]} | changed
        return ours._model.hidden(tokens, *map(np.array, numbers.values()), cache)

    for wrong, match in (
        (lambda: module.Matrix("q4_k", 4, 100), "no whole number of q4_k blocks"),
        (lambda: module.Matrix("q9_k", 4, 256), "no products with q9_k"),
        (lambda: module.Matrix("f16", 4, 0), "needs rows and columns"),
        (lambda: module.Matrix("q8_0", 40, 32).fill(8, 32, np.zeros(32 * 34, np.uint8), module.Pool(1)), "do not fit"),
        (lambda: module.Matrix("q8_0", 40, 32).fill(0, 32, np.zeros(33, np.uint8), module.Pool(1)), "do not fit"),
        (lambda: module.view_matrix("f16", 2, 3, np.zeros(13, np.uint8)), "do not fit"),
        (lambda: module.view_matrix("q8_0", 2, 32, np.zeros(68, np.uint8)), "is packed"),
        (lambda: module.Pool(0), "threads"),
        (lambda: fed(tokens=TOKENS + 300), "a token is out of range"),
        (lambda: fed(starts=[0, 1]), "75 positions, found 1 and 75"),
        (lambda: fed(starts=[-1, 0]), "75 positions, found -1 and 75"),
        (lambda: fed(starts=[1 << 40, 0]), "75 positions, found 1099511627776"),
        (lambda: fed(slots=[0, 2]), r"slots must lie in 0\.\.1, found 2"),
        (lambda: fed(slots=[-1, 0]), r"slots must lie in 0\.\.1, found -1"),
        (lambda: fed(slots=[1, 1]), "slots must be distinct, found 1 twice"),
        (lambda: fed(slots=[0]), "one number a row of tokens"),
        (lambda: fed(counts=[75, 0]), r"counts must lie in 1\.\.75, found 0"),
        (lambda: fed(counts=[76, 75]), r"counts must lie in 1\.\.75, found 76"),
        (lambda: cache.copy(cache, np.array([0, 76])), r"lengths must lie in 0\.\.75, found 76"),
        (lambda: cache.copy(cache, np.array([0])), "do not match"),
        (lambda: other._model.hidden(TOKENS[:, :1], *np.array([[0, 1], [0, 0], [1, 1]]), cache), "fit the model"),
        (lambda: ours._model.logits(np.zeros((2, 5), np.float32)), "width"),
        (lambda: on_core(CONFIG, source, isa="avx9"), "not available"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()
    for tokens, match in ((TOKENS + 300, "must lie in 0..299"), (TOKENS[:0], "must be integers")):
        with pytest.raises(UsageError, match=match):
            ours.forward(tokens)
    with pytest.raises(UsageError, match="cannot hold 76"):
        ours.prefill(TOKENS[:, :1], _filled(ours))
    with pytest.raises(UsageError, match="distinct"):
        ours.forward(TOKENS, ours.new_cache(75, batch=3), slots=np.array([2, 2]))
    with pytest.raises(UsageError, match="counts must lie in"):
        ours.prefill(TOKENS, ours.new_cache(75, batch=2), counts=np.array([0, 1]))
    with pytest.raises(UsageError, match="need a cache"):
        ours.forward(TOKENS, counts=np.array([0, 1]))
    with pytest.raises(UsageError, match="cannot be cut"):
        ours.new_cache(4).truncate(0, 1)
    with pytest.raises(ValueError, match="a cache of int3 is not known"):
        on_core(CONFIG, source, cache_type="int3").new_cache(4)


def _filled(decoder: CoreDecoder) -> Any:
    cache = decoder.new_cache(75, batch=2)
    decoder.hidden(TOKENS, cache)
    return cache


def test_a_file_that_shrinks_is_named(tmp_path: Path) -> None:
    source = source_of.__wrapped__(CONFIG, "q8_0", tmp_path)
    with source.path.open("r+b") as file:
        file.truncate(source.path.stat().st_size // 2)
    with pytest.raises(FileError, match=r"\.gguf.*(ended|ends)"):
        on_core(CONFIG, source)


@pytest.mark.parametrize("layout", ["q4_k", "nvfp4"])
def test_matrices_are_as_large_as_in_the_file(layout: str, folder: Path) -> None:
    source = source_of(CONFIG, layout, folder)
    linears = [info for name, info in source.tensors.items() if len(info.shape) > 1 and name != "token_embd.weight"]
    row = source.tensors["token_embd.weight"].nbytes // CONFIG.vocab
    assert on_core(CONFIG, source).token_bytes == sum(info.nbytes for info in linears) + row


def test_more_pieces_than_a_ticket_counts(folder: Path) -> None:
    config = replace(TINY, layers=1, rope=Rope(dim=8))
    ours = on_core(config, source_of(config, "f32", folder))
    states = ours.hidden(np.ones((33000, 1), np.int64))  # 66,000 heads
    np.testing.assert_allclose(states, np.broadcast_to(states[0], states.shape), atol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_works_alone_and_ends() -> None:
    code = """
import os, sys, time, bitsmith
model = bitsmith.load("reference", threads=3)
model.generate("Once", max_tokens=2)
time.sleep(0.05)  # its threads sleep
child = os.fork()
if child == 0:
    model.generate("Once", max_tokens=2)
    del model
    os._exit(7)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 7


HALVES = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize("isa", ISAS)
def test_every_half_is_read_as_it_is(isa: str) -> None:
    """All 65,536 float16, infinities and NaN included, through an embedding of one column a row."""
    module: Any = core()
    scales = {"norm_eps": 1e-5, "embedding_scale": 1.0, "residual_scale": 1.0}
    model = module.Model(32, **scales, exact=True, fine=False, isa=isa, pool=module.Pool(1))
    table = np.zeros((1 << 16, 32), np.uint16)
    table[:, 7] = HALVES
    embedding = module.view_matrix("f16", 1 << 16, 32, table.view(np.uint8).reshape(-1))
    model.set_ends(embedding, np.ones(32, np.float32), embedding)
    cache = module.Cache([], 1, 1 << 16, "f32", [])
    states = model.hidden(np.arange(1 << 16)[None], *np.array([[0], [0], [1 << 16]]), cache)
    np.testing.assert_array_equal(states[0, :, 7], HALVES.view(np.float16).astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cache_type", CACHES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -3e38])
def test_caches_do_not_hide_damage(wrong: float, cache_type: str, isa: str, folder: Path) -> None:
    source = source_of(CONFIG, "q8_0", folder)

    def read(name: str) -> Weight:
        weight = Weight.of(source, name)
        if name != "blk.0.attn_v.bias":
            return weight
        values = np.zeros((1, 64), np.float32)
        values[0, 5] = wrong
        return replace(weight, rows=lambda start, stop: values)

    source = source_of(VARIANTS["biased"], "q8_0", folder)
    decoder = load_core(VARIANTS["biased"], read, threads=1, exact=False, cache_type=cache_type, isa=isa)
    with np.errstate(all="ignore"):
        logits = decoder.forward(TOKENS[:1, :3])
    assert not np.isfinite(logits).all() or (wrong == -3e38 and cache_type == "f32")
