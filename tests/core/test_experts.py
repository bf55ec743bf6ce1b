"""Mixtures of experts on the C++ core: what is read on demand, and what choosing experts does with odd numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bitsmith
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.config import Experts, Rope
from bitsmith.models.checkpoint import open_checkpoint
from bitsmith.runtime import expert_memory as module
from bitsmith.system.core import core
from tests.core.test_run import CONFIG, ISAS, TOKENS, on_core, on_torch, source_of, spread

pytestmark = pytest.mark.skipif(core() is None, reason="no C++ core")

MIXTURE = replace(CONFIG, arch="qwen3_moe", qk_norm=True, experts=Experts(12, 3, 256), rope=Rope(dim=32))
STACK = 256 * 256 // 256 * 144  # bytes of one expert's matrix in q4_k


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["q4_k", "q8_0", "bf16"])
def test_every_instruction_set(layout: str, isa: str, tmp_path: Path) -> None:
    """Rounded inputs may move a router's choice where two scores nearly agree, so most positions are held, not all."""
    source = source_of(MIXTURE, layout, tmp_path)
    expected = on_torch(MIXTURE, source)
    logits = expected.numpy(expected.forward(TOKENS))
    np.testing.assert_allclose(on_core(MIXTURE, source, isa=isa).forward(TOKENS), logits, atol=1e-3 * spread(logits))
    # here inputs of bfloat16 matrices are rounded to bfloat16 whatever `fine` says
    rounds = (layout, isa) == ("bf16", "avx512bf16")
    for fine, bound in ((False, 0.15), (True, 0.025 if rounds else 0.02)):
        rounded = on_core(MIXTURE, source, exact=False, fine=fine, isa=isa)
        lost = np.abs(rounded.forward(TOKENS) - logits).max(-1) / spread(logits)
        assert np.quantile(lost, 0.8) < bound
        cache = rounded.new_cache(6)
        steps = np.stack([rounded.prefill(TOKENS[:1, i : i + 1], cache) for i in range(6)], axis=1)
        assert np.quantile(np.abs(steps - logits[:1, :6]).max(-1) / spread(logits), 0.8) < 0.02


@pytest.mark.parametrize("limit", [1, 7 * STACK, 20 * STACK, 1000 * STACK])
def test_experts_on_demand_change_no_result(limit: int, tmp_path: Path) -> None:
    source = source_of(MIXTURE, "q4_k", tmp_path)
    whole = on_core(MIXTURE, source, exact=False)
    some = on_core(MIXTURE, source, exact=False, expert_memory=limit)
    np.testing.assert_array_equal(some.forward(TOKENS), whole.forward(TOKENS))
    caches = [each.new_cache(8) for each in (some, whole)]
    for i in range(8):
        one, other = (d.prefill(TOKENS[:1, i : i + 1], c) for d, c in zip((some, whole), caches, strict=True))
        np.testing.assert_array_equal(one, other)
    assert some.token_bytes == whole.token_bytes
    shares = {info.name: 3 / 12 if "_exps." in info.name else 1 for info in source.tensors.values() if info.rows > 1}
    read = {name: source.tensors[name].nbytes * share for name, share in shares.items() if "ffn_gate_inp" not in name}
    routers = 2 * 12 * 256 * 4  # in float32
    assert whole.token_bytes == sum(read.values()) - read["token_embd.weight"] + routers + 144


def test_a_file_that_lost_its_experts(tmp_path: Path) -> None:
    source = source_of(MIXTURE, "q4_k", tmp_path)
    decoder = on_core(MIXTURE, source, exact=False, expert_memory=STACK)
    source.path.write_bytes(source.path.read_bytes()[:4096])
    with pytest.raises(FileError, match="experts of the model cannot be read"):
        decoder.forward(TOKENS)


def test_memory_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from tests.families import folder_of

    folder, _ = folder_of("qwen3_moe", tmp_path / "moe")
    made = bitsmith.quantize(folder, to="q8_0", out=tmp_path / "q.gguf").out
    checkpoint = open_checkpoint(made)
    stacks = sum(info.nbytes for name, info in checkpoint.source.tensors.items() if "_exps." in name)
    rest = sum(info.nbytes for info in checkpoint.source.tensors.values() if len(info.shape) > 1) - stacks
    monkeypatch.setattr(module.logging.getLogger("bitsmith.runtime.load.choice"), "propagate", True)
    usual = bitsmith.load(made, kernel="int16").logits(TOKENS[:1] % 4096)
    assert not caplog.text
    monkeypatch.setattr(module, "available_memory", lambda: round((rest + stacks * 0.8) / (1 - module.RESERVE)))
    on_demand = bitsmith.load(made, kernel="int16").logits(TOKENS[:1] % 4096)
    assert "read from the file when a token needs them" in caplog.text
    np.testing.assert_array_equal(on_demand, usual)
    monkeypatch.setattr(module, "available_memory", lambda: rest)
    with pytest.raises(UnsupportedError, match="a token reads"):
        bitsmith.load(made, kernel="int16")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_damage_of_a_router_is_not_hidden(wrong: float, tmp_path: Path) -> None:
    from bitsmith.runtime.core_loader import load_core
    from bitsmith.runtime.kernel import Weight

    source = source_of(MIXTURE, "q4_k", tmp_path)

    def read(name: str) -> Weight:
        weight = Weight.of(source, name)
        if name != "blk.0.ffn_gate_inp.weight":
            return weight
        values = np.full((12, 256), wrong, np.float32)
        return replace(weight, rows=lambda start, stop: values[start:stop])

    decoder = load_core(MIXTURE, read, threads=2, exact=True, cache_type="f32")
    assert np.isnan(decoder.forward(TOKENS[:1])).any()
