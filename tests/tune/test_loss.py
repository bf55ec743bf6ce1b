"""The loss by slabs against transformers' own: values, and gradients of adapters, hidden states and heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")

from bitsmith.tune import loss as losses
from bitsmith.tune.batches import IGNORED
from bitsmith.tune.loss import find_head, token_loss
from tests.torch_modules.models import BASE, llama, mixtral


def gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(Gemma2Config(**BASE, head_dim=16, final_logit_softcapping=0.1))


def granite() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**BASE, logits_scaling=0.1))


def cohere() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**BASE, logit_scale=9.0))


def batch(rows: int = 3, tokens: int = 40) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 160, (rows, tokens), generator=torch.Generator().manual_seed(3))
    labels = ids.clone()
    labels[0, 1:30] = IGNORED
    labels[2] = IGNORED
    return {"input_ids": ids, "labels": labels}


@pytest.mark.parametrize("make", [llama, gemma2, granite, cohere, mixtral])
@pytest.mark.parametrize("trains_head", [False, True])
def test_loss_and_gradients(make: Any, trains_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("SLAB_ROWS", 30), ("SLAB_LOGITS", 30 * 64), ("_LEAST_WORDS", 8), ("_LEAST_ROWS", 20)):
        monkeypatch.setattr(losses, name, size)  # several slabs, the last one shorter
    torch.manual_seed(0)
    model = make()
    model.requires_grad_(False)
    weights = [model.get_submodule("model.layers.0.self_attn.q_proj").weight]
    if trains_head:
        weights.append(model.lm_head.weight)
    for each in weights:
        each.requires_grad_(True)
    model.train()
    head = find_head(model)
    assert head is not None
    assert model.training
    found = []
    for by_slabs in (False, True):
        model.zero_grad()
        if by_slabs:
            total, count = token_loss(model, head, batch())
            loss = total / count
        else:
            loss = model(**batch()).loss
        (7 * loss).backward()
        found.append([loss.detach(), *(each.grad.clone() for each in weights)])
    assert count == 10 + 39
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # sums of slabs have another order
    with torch.no_grad():
        whole, _ = token_loss(model, None, batch())
        slabs, _ = token_loss(model, head, batch())
    torch.testing.assert_close(whole, slabs, rtol=1e-5, atol=1e-5)


def test_logits_are_never_there_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "SLAB_LOGITS", 49 * 64)
    monkeypatch.setattr(losses, "_LEAST_WORDS", 8)
    model = llama().requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    head, given, made = find_head(model), [], []
    model.lm_head.register_forward_hook(lambda _, inputs, output: given.append(output.numel() // 160))
    part = losses.Head.logits
    monkeypatch.setattr(losses.Head, "logits", lambda *args: made.append(part(*args)) or made[-1])
    assert head is not None
    assert not head.is_plain  # someone looks at its output, so it is called with all words, a few rows at a time
    token_loss(model, head, batch())
    assert given == [3, 49]  # the last token of each row for the model itself, then what counts
    model.lm_head._forward_hooks.clear()
    made.clear()
    token_loss(model, head, batch())
    assert [tuple(each.shape) for each in made] == 2 * [(49, 64), (49, 64), (49, 32)]


def test_words_go_by_slabs_of_few_megabytes() -> None:
    assert [each.stop - each.start for each in losses.slabs_of_words(512, 10_000)] == [4096, 4096, 1808]
    assert next(losses.slabs_of_words(1 << 20, 10_000)) == slice(0, 256)


def test_no_head_is_found_where_logits_are_more_than_the_heads_output() -> None:
    model = llama()
    plain = type(model).forward

    class Shifted(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, logits_to_keep: int = 0, **words: Any) -> Any:
            out = plain(self, *args, **words)
            out.logits = out.logits + 1
            return out

    model.__class__ = Shifted
    assert find_head(model) is None
    routed = mixtral()
    assert find_head(routed) is not None
    routed.config.output_router_logits = True
    assert find_head(routed) is None


def test_a_loss_that_is_not_finite_is_seen() -> None:
    model = llama().requires_grad_(False)
    head = find_head(model)
    model.lm_head.weight[3] = float("nan")
    assert not torch.isfinite(token_loss(model, head, batch())[0])
