"""LoRA of peft on a quantized model: adapters train, the codes stay."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
import bitsmith.torch
from tests.torch_modules.models import built, tokens

peft = pytest.importorskip("peft", reason="peft is not installed")


def test_a_step_of_lora() -> None:
    model = built("llama")
    bitsmith.torch.quantize_module(model, "nf4")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = adapted(tokens(), labels=tokens()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    with adapted.disable_adapter(), torch.no_grad():
        plain = adapted(tokens()).logits
    after = built_state(adapted)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert torch.equal(plain, reference(before))


def built_state(adapted: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state without adapters, by the original's names."""
    state = adapted.get_base_model().state_dict()  # type: ignore[operator]
    return {key.replace(".base_layer", ""): value for key, value in state.items() if "lora_" not in key}


def reference(state: dict[str, torch.Tensor]) -> torch.Tensor:
    model = built("llama")
    bitsmith.torch.quantize_module(model, "nf4")
    model.load_state_dict(state)
    with torch.no_grad():
        return model(tokens()).logits  # type: ignore[no-any-return]


def test_merging_is_refused() -> None:
    model = built("llama")
    bitsmith.torch.quantize_module(model, "nf4")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(AttributeError):
        adapted.merge_adapter()
