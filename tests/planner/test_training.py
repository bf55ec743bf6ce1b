"""Training memory: the identities of its papers, and what PyTorch keeps for the backward pass of small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitsmith.errors import UsageError
from bitsmith.planner.hf_network import network_from_config
from bitsmith.planner.model_spec import find_model
from bitsmith.planner.network import LayerCache, Network
from bitsmith.planner.shapes import known_shapes
from bitsmith.planner.training import (
    METHODS,
    Training,
    activation_bytes,
    adapter_parameters,
    kept_numbers,
    training_memory,
)
from bitsmith.quant.tensor import TensorInfo

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def network(name: str) -> Network:
    return find_model(name, scratch=Path()).network


def layer_numbers(network: Network, layer: int = 0) -> dict[str, int]:
    """The layer's tensors by name, counted."""
    prefix = f"blk.{layer}."
    parts = {t.name.removeprefix(prefix): t for t in network.tensors if t.name.startswith(prefix)}
    return kept_numbers(network, network.caches[layer], parts)


def layer_bytes(network: Network) -> int:
    return 2 * sum(layer_numbers(network).values())


def test_full_fine_tuning_takes_16_bytes_a_parameter() -> None:
    model = network("llama-3-8b")
    found = training_memory(model, "full", context=2048)
    assert found.trained == model.parameters
    assert found.total - found.activations == 16 * model.parameters
    assert (found.weights, found.gradients, found.optimizer) == tuple(n * model.parameters for n in (2, 2, 12))
    assert found.activations == activation_bytes(model, context=2048, batch=1, checkpointing=True)


def test_eight_bit_moments_save_six_bytes_a_parameter() -> None:
    model = network("llama-3-8b")
    whole = training_memory(model, "full", context=1)
    small = training_memory(model, "full", context=1, optimizer="adamw-8bit")
    assert whole.total - small.total == 6 * model.parameters
    assert any("8 bits" in sentence for sentence in small.assumptions)


def test_adapters_of_q_and_v() -> None:
    """2 x matrices x hidden x rank (Hu et al. 2021, section 5.1): 4.2 million for LLaMA 7B at rank 8."""
    matrices = [t for t in network("llama-2-7b").tensors if t.name.split(".")[-2] in ("attn_q", "attn_v")]
    assert adapter_parameters(matrices, 8) == 4_194_304


def test_lora_trains_adapters_only() -> None:
    model = network("llama-2-7b")
    found = training_memory(model, "lora", context=512, rank=16)
    layer = 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert found.trained == 32 * layer
    assert found.weights == 2 * (model.parameters + found.trained)
    assert found.gradients + found.optimizer == 14 * found.trained
    assert training_memory(model, "lora", context=512, rank=32).trained == 2 * found.trained


def test_lora_spares_experts_and_routers() -> None:
    model = network("mixtral-8x7b")
    attention = 2 * (4096 + 4096) + 2 * (4096 + 1024)
    assert training_memory(model, "lora", context=1, rank=8).trained == 32 * 8 * attention


def test_lora_of_latent_attention() -> None:
    """GGUF's halves of kv_b: rank x (512 + 16 x 128) each, as the one matrix has 512 inputs and 16 x 256 outputs."""
    names = ("blk.1.attn_k_b.weight", "blk.1.attn_v_b.weight")
    halves = [tensor for tensor in network("deepseek-v2-lite").tensors if tensor.name in names]
    assert [adapter_parameters([half], 4) for half in halves] == [4 * (512 + 16 * 128)] * 2


def test_qlora_weights() -> None:
    """4 + 8/64 + 32/(64 x 256) bits a weight of the layers' matrices; embedding, head, norms and adapters in bf16."""
    model = network("llama-2-7b")
    found = training_memory(model, "qlora", context=512)
    linears = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    packed = linears * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    rest = 2 * (model.parameters - linears + 4096 * 11008 + found.trained)
    assert found.weights == pytest.approx(packed + rest, rel=1e-6)
    assert 3.5e9 < found.weights < 4.1e9
    assert found.trained == training_memory(model, "lora", context=512).trained


def test_qlora_trains_65b_on_48_gb() -> None:
    """Dettmers et al. 2023, abstract; here a sequence of 512 tokens."""
    model = network("llama-65b")
    assert training_memory(model, "qlora", context=512).total < 48e9
    assert training_memory(model, "lora", context=512).total > 2 * 48e9


def test_qlora_unpacks_one_expert_at_a_time() -> None:
    model = network("mixtral-8x7b")
    found = training_memory(model, "qlora", context=1)
    linears = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 8 * 3 * 4096 * 14336)
    packed = linears * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    rest = 2 * (model.parameters - linears + 4096 * 14336 + found.trained)
    assert found.weights == pytest.approx(packed + rest, rel=1e-6)


def test_qat_is_that_of_tune_qat() -> None:
    """5 bytes a weight of the layers for scales, 25 for all, 19 with moments in 8 bits; decoded weights of a block."""
    model = network("llama-2-7b")
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008
    ends = 3 * 4 * 32000 * 4096
    found = {method: training_memory(model, method, context=512) for method in ("qat", "qat-all")}
    small = training_memory(model, "qat-all", context=512, optimizer="adamw-8bit")
    each = [(one.total - one.activations) / (32 * layer) for one in (*found.values(), small)]
    scales = [16 / 64, 16 / 64, 10 / 64]  # of groups of 64: gradient, moments, the best state
    for bytes_each, share, wanted in zip(each, scales, (5, 25, 19), strict=True):
        assert bytes_each == pytest.approx(wanted + share + ends / (32 * layer), rel=1e-3)
    whole = training_memory(model, "qat", context=512, checkpointing=False)
    kept = whole.activations - found["qat"].activations
    assert kept == 31 * (6 * layer + 2 * 512 * layer_bytes(model)) - 4 * 512 * 32 * 4096


def test_qat_keeps_what_the_run_itself_plans() -> None:
    """Of the reference model: the run's own count of weights, offsets, gradients and moments."""
    from bitsmith.calibration import cost
    from bitsmith.calibration.end_to_end import EndToEnd
    from bitsmith.models.checkpoint import open_checkpoint
    from bitsmith.planner.model_spec import from_checkpoint

    checkpoint = open_checkpoint("reference")
    for depth, method in (("scales", "qat"), ("all", "qat-all")):
        for optimizer, known in (("adam", "adamw"), ("adam-8bit", "adamw-8bit")):
            own = cost.training_memory(checkpoint.laid_out("gguf").config, EndToEnd(depth, optimizer=optimizer))
            said = training_memory(from_checkpoint(checkpoint, "").network, method, context=256, optimizer=known)
            assert said.total - said.activations == pytest.approx(own, rel=0.06)


def test_a_gpt_keeps_what_the_paper_counts() -> None:
    """Korthikanti et al. 2022, equation 1, without scores: 34 bytes x hidden, 2 of them dropout masks.

    We count no dropout, and 4 bytes a head of the log-sum-exp in place of the scores.
    """
    model = network("gpt-3")
    assert layer_bytes(model) == 32 * model.hidden + 4 * model.heads
    assert layer_bytes(model) == pytest.approx(34 * model.hidden, rel=0.15)


def test_a_gated_layer_with_grouped_attention() -> None:
    assert layer_numbers(network("llama-3-8b")) == {
        "norms": 4 * 4096,
        "q": 4096,
        "k": 1024,
        "v": 1024,
        "latents": 0,
        "before norms": 0,
        "attention": 4096,
        "log-sum-exp": 2 * 32,
        "mlp": 4 * 14336,
    }


@pytest.mark.parametrize(
    ("name", "layer", "part", "expected"),
    [
        ("falcon-7b", 0, "norms", 2 * 4544),  # attention and MLP side by side
        ("gemma-2-2b", 0, "norms", 6 * 2304),  # norms after attention and MLP too
        ("qwen3-8b", 0, "before norms", 4096 + 1024),
        ("falcon-7b", 0, "mlp", 2 * 4 * 4544),
        ("phi-4", 0, "mlp", 4 * 17920),  # gate and up are one matrix
        ("mixtral-8x7b", 0, "mlp", 4 * 2 * 14336 + 2 * 2 * 4096),
        ("deepseek-v2-lite", 0, "mlp", 4 * 10944),  # the first layer is dense
        ("deepseek-v2-lite", 1, "mlp", 4 * 8 * 1408 + 2 * 6 * 2048),  # six experts, and two for every token
        ("deepseek-v2-lite", 1, "k", 16 * (128 + 64)),
        ("deepseek-v2-lite", 1, "v", 16 * 128),
        ("deepseek-v3", 5, "latents", 2 * (512 + 64 + 1536)),
        ("jamba-v0.1", 0, "recurrent", 12 * 4096),
    ],
)
def test_what_layers_of_other_kinds_keep(name: str, layer: int, part: str, expected: int) -> None:
    assert layer_numbers(network(name), layer)[part] == expected


def test_a_layer_that_shares_a_cache_keeps_no_keys_of_its_own() -> None:
    model = network("llama-3-8b")
    shared = kept_numbers(model, LayerCache(), {})
    assert (shared["q"], shared["k"], shared["v"]) == (4096, 0, 0)


def test_activations_add_up() -> None:
    model = network("llama-3-8b")
    ends = 2 * 2 * 4096 + 14 * 128_256  # the last norm; logits, log-softmax, gradient in float32, logits in 16 bits
    whole = activation_bytes(model, context=2048, batch=3, checkpointing=False)
    assert whole == 3 * 2048 * (32 * layer_bytes(model) + ends)
    small = activation_bytes(model, context=2048, batch=3, checkpointing=True)
    assert small == 3 * 2048 * (32 * 2 * 4096 + layer_bytes(model) + ends)


def test_logits_are_most_of_it_with_a_large_vocabulary() -> None:
    model = network("gemma-3-1b")
    logits = 14 * 1024 * model.vocab
    assert logits > activation_bytes(model, context=1024, batch=1, checkpointing=True) / 2
    said = training_memory(model, "full", context=1024).assumptions
    assert any(f"{logits / 1e9:.1f} GB" in sentence for sentence in said)


def test_adapters_need_the_logits_of_a_slab_alone() -> None:
    model = network("gemma-3-1b")
    sizes = [training_memory(model, "lora", context=context).activations for context in (2048, 4096)]
    kept = training_memory(model, "full", context=2048).activations - 14 * 2048 * model.vocab
    slab = 8 * (1 << 21) + 2 * 1024 * model.hidden + 6 * 2048 * model.hidden  # logits; words; the head's input
    assert sizes[0] == kept + slab
    assert sizes[1] == 2 * kept + slab


@pytest.mark.parametrize("name", known_shapes())
def test_methods_rank_alike_for_every_shape(name: str) -> None:
    model = network(name)
    found: dict[str, Training] = {method: training_memory(model, method, context=128) for method in METHODS}
    assert found["qlora"].total < found["lora"].total < found["qat"].total < found["qat-all"].total
    assert found["lora"].total < found["full"].total < found["qat-all"].total
    assert 0 < found["lora"].trained < model.parameters / 10
    for method, one in found.items():
        assert one.method == method
        assert one.total == one.weights + one.gradients + one.optimizer + one.activations
        assert all(sentence.endswith(".") for sentence in one.assumptions)
        assert one.activations <= training_memory(model, method, context=128, checkpointing=False).activations


def test_rough_counts_are_told() -> None:
    said = {name: training_memory(network(name), "lora", context=1).assumptions for name in ("jamba-v0.1", "phi-4")}
    assert [any("rough" in sentence for sentence in sentences) for sentences in said.values()] == [True, False]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "dora"}, r'training=\["dora"\]'),
        ({"optimizer": "sgd"}, 'optimizer="sgd"'),
        ({"rank": 0}, "adapter_rank=0"),
        ({"context": 0}, "context=0"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_errors_name_the_option(options: dict[str, Any], named: str) -> None:
    call = {"method": "lora", "context": 1, **options}
    with pytest.raises(UsageError, match=f"^{named}: "):
        training_memory(network("llama-2-7b"), **call)


def test_a_network_of_few_tensors_does_not_fail() -> None:
    tensors = (TensorInfo("token_embd.weight", (32, 64), "", 0),)
    model = Network("odd", "odd", 64, 32, 0, 4, 4, 16, 128, (), tensors)
    assert training_memory(model, "lora", context=1).trained == 0
    assert training_memory(model, "full", context=1).activations == 2 * 2 * 64 + 14 * 32
    assert training_memory(model, "qat", context=1).activations == 4 * 2 * 64 + 4 * 6 * 32


@pytest.mark.parametrize(
    ("kind", "fields"), [("llama", {}), ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2})]
)
def test_autograd_keeps_as_much(kind: str, fields: dict[str, int]) -> None:
    """transformers' own layers, but for what norms in float32 keep: 4 bytes x hidden more for each."""
    transformers = pytest.importorskip("transformers")
    tokens, kept = 64, []
    for layers in (1, 2):
        config = transformers.AutoConfig.for_model(kind, num_hidden_layers=layers, **SMALL, **fields)
        kept.append(_saved_bytes(transformers.AutoModelForCausalLM.from_config(config), tokens))
    model = network_from_config(config.to_dict(), name=kind, origin=kind)
    norms = 2 * 4 * model.hidden
    assert (kept[1] - kept[0]) / tokens == pytest.approx(layer_bytes(model) + norms, rel=0.01)


def _saved_bytes(model: Any, tokens: int) -> int:
    """Bytes of the storages that autograd saves in a forward pass, parameters apart."""
    import torch

    model = model.to(torch.bfloat16).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Any] = {}  # holds them, so that no address is used twice

    def pack(tensor: Any) -> Any:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.arange(tokens)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
