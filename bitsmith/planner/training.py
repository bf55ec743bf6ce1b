"""What training takes: weights, gradients, optimizer and activations of full fine-tuning, LoRA, QLoRA and QAT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitsmith.errors import UsageError
from bitsmith.planner.network import LayerCache, Network
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.category import layer_of

METHODS = ("full", "lora", "qlora", "qat")
OPTIMIZERS: Mapping[str, int] = {  # bytes a trained parameter: float32 master weight, momentum, variance
    "adamw": 4 + 4 + 4,  # ZeRO (Rajbhandari et al. 2020), section 3.1
    "adamw-8bit": 4 + 1 + 1,  # Dettmers et al. 2021, section 2; one float32 to a block of 2048 is left out
}

_NUMBER = 2  # bytes, bf16
_MASK = 1  # bytes, a boolean
_NF4_BLOCK, _SUPER_BLOCK = 64, 256  # weights to an 8-bit scale; scales to a float32
_RECURRENT = 12  # numbers a hidden one

_APART = re.compile(r"norm|conv|gate_inp|sinks")  # matrices of a layer that are no linears, and routers
_ROUTED = re.compile(r"_exps\.|\.experts\.")
_LAYER_NORM = re.compile(r"(?<![qk])(?<!_a)_norm(_2)?\.weight$")


@dataclass(frozen=True)
class Training:
    """Bytes that training takes at its peak, on one device.

    weights: as they are multiplied: bf16, or NF4 with one unpacked matrix; adapters included
    gradients: bf16, of what is trained
    optimizer: float32 master weights, momentum and variance
    activations: what the backward pass needs of the forward one, logits included; of qat fake-quantized weights too
    trained: parameters that receive gradients
    checkpointing: whether layers are recomputed in the backward pass
    assumptions: a sentence each
    """

    method: str
    weights: int
    gradients: int
    optimizer: int
    activations: int
    trained: int
    checkpointing: bool
    assumptions: tuple[str, ...]

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    network: Network,
    method: str,
    *,
    context: int,
    batch: int = 1,
    rank: int = 16,
    checkpointing: bool = True,
    optimizer: str = "adamw",
) -> Training:
    """What a method of METHODS takes for `batch` sequences of `context` tokens, with an optimizer of OPTIMIZERS.

    full: 2 bytes of weights, 2 of gradients and 12 of AdamW a parameter: ZeRO (Rajbhandari et al. 2020), section 3.1
    lora: bf16 weights stay as they are; adapters of `rank` on every linear of attention and MLP, rank x (in + out)
        parameters each, take those 16 bytes a parameter. None on routed experts and routers. Hu et al. 2021,
        section 4.1, equation 3
    qlora: linears of the layers in NF4, 8-bit scales of 64 weights and float32 scales of 256 of those, 4.127 bits a
        weight; the rest in bf16; the largest matrix is unpacked to bf16 while it is multiplied. Dettmers et al. 2023,
        section 3
    qat: as full; linears of the layers fake-quantized in the forward pass (Jacob et al. 2018, section 3; LLM-QAT, Liu
        et al. 2023, section 2.2). Autograd keeps their copy in bf16 and a byte a weight of the straight-through
        estimator's mask: of one layer with checkpointing, else of all
    rank: read for lora and qlora only
    checkpointing: see `activation_bytes`
    Raises UsageError for an unknown method or optimizer, and for numbers below one.
    """
    if method not in METHODS:
        raise UsageError(f"--training {method}: unknown; expected {', '.join(METHODS)}.")
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"--optimizer {optimizer}: unknown; expected {', '.join(OPTIMIZERS)}.")
    if rank < 1:
        raise UsageError(f"--rank {rank}: expected 1 or more.")
    activations = activation_bytes(network, context=context, batch=batch, checkpointing=checkpointing)
    weights, trained = _NUMBER * network.parameters, network.parameters
    if method in ("lora", "qlora"):
        trained = adapter_parameters(_adapted(network), rank)
        weights = _NUMBER * trained + (weights if method == "lora" else _nf4_weights(network))
    if method == "qat":
        activations += _fake_quantized(network, checkpointing)
    return Training(
        method=method,
        weights=weights,
        gradients=_NUMBER * trained,
        optimizer=OPTIMIZERS[optimizer] * trained,
        activations=activations,
        trained=trained,
        checkpointing=checkpointing,
        assumptions=(
            *_of_method(method, rank, checkpointing),
            *_of_optimizer(optimizer),
            *_of_activations(network, context * batch, checkpointing),
        ),
    )


def activation_bytes(network: Network, *, context: int, batch: int, checkpointing: bool) -> int:
    """Bytes kept for the backward pass: `kept_numbers` of each layer, the last norm, and logits.

    checkpointing: each layer's input is kept, 2 bytes x hidden a token (Korthikanti et al. 2022, section 5), and one
        layer, the largest, is recomputed at a time
    Logits and their gradient are float32, context x batch x vocab each; with large vocabularies and checkpointing
    they are most of it. They are gone before the first layer is recomputed; their room stands for the gradients of
    activations, which are not counted. Of frozen weights the count is the same.
    Raises UsageError for numbers below one.
    """
    if context < 1:
        raise UsageError(f"--context {context}: expected 1 or more tokens.")
    if batch < 1:
        raise UsageError(f"--batch {batch}: expected 1 or more sequences.")
    parts = _by_layer(network)
    layers = [
        sum(kept_numbers(network, cache, parts.get(layer, {})).values()) for layer, cache in enumerate(network.caches)
    ]
    kept = network.hidden * len(layers) + max(layers, default=0) if checkpointing else sum(layers)
    last_norm = 2 * network.hidden
    return context * batch * (_NUMBER * (kept + last_norm) + _logits(network))


def kept_numbers(network: Network, cache: LayerCache, parts: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Numbers of 2 bytes that one layer keeps of one token, without checkpointing.

    parts: the layer's tensors by their names below it; where a family's are unknown, the usual is taken
    norms: inputs and outputs of the norms before attention and MLP; inputs of those after them
    q, k, v: as they are multiplied, and before their norms where they have some; of latent attention the latents too
    attention: its output. log-sum-exp: a float32 a head, in place of the scores (FlashAttention-2, Dao 2023,
        section 3.1.1); windows change nothing
    mlp: gate, up, activated gate and their product; without a gate up and activated up; of routed MLPs the chosen
        experts', with input and output of each
    recurrent: in place of attention; 12 x hidden, roughly what Mamba (Gu and Dao 2023) keeps at an expansion of 2: x
        and z, the convolution's, the step's, the scan's and the gated output

    The way is that of Korthikanti et al. 2022, equation 1: s b h (34 + 5 a s / h) bytes a layer of a GPT. Of it 2 are
    dropout masks, 5 a s / h are scores and their dropout; both are not kept here, which leaves 32. Norms are taken as
    one kernel, as there; transformers computes them in float32 step by step and keeps 4 bytes x hidden more for each.
    """
    norms = _norm_count(parts)
    kept = 2 * min(norms, 2) + max(norms - 2, 0)
    mixing = {"recurrent": _RECURRENT * network.hidden} if cache.state else _attention(network, cache, parts)
    return {"norms": kept * network.hidden, **mixing, "mlp": _mlp(network, parts)}


def adapter_parameters(matrices: Iterable[TensorInfo], rank: int) -> int:
    """Parameters of an adapter on each matrix: rank x (in + out), Hu et al. 2021, section 4.1."""
    return sum(rank * sum(_ends(matrix)) for matrix in matrices)


def _ends(matrix: TensorInfo) -> tuple[int, int]:
    """Inputs and outputs. GGUF splits latent attention's up projection by head, the half for keys transposed."""
    if "attn_k_b." in matrix.name and len(matrix.shape) == 3:
        heads, latent, width = matrix.shape
        return latent, heads * width
    return matrix.cols, matrix.rows


def _by_layer(network: Network) -> dict[int, dict[str, TensorInfo]]:
    found: dict[int, dict[str, TensorInfo]] = {}
    for tensor in network.tensors:
        layer = layer_of(tensor.name)
        if layer >= 0:
            found.setdefault(layer, {})[tensor.name.split(".", 2)[-1]] = tensor
    return found


def _norm_count(parts: Mapping[str, TensorInfo]) -> int:
    """Norms of the hidden state; two where they are unknown."""
    return sum(_LAYER_NORM.search(name) is not None for name in parts) or 2


def _attention(network: Network, cache: LayerCache, parts: Mapping[str, TensorInfo]) -> dict[str, int]:
    q = v = network.heads * network.head_dim
    keys, values, latents = cache.keys, cache.values, 0
    if cache.kind == "latent":
        up, down, out = (parts.get(f"{name}.weight") for name in ("attn_q_b", "attn_q_a", "attn_output"))
        up = up or parts.get("attn_q.weight")
        q, v = up.rows if up else q, out.cols if out else v
        latents = 2 * (cache.keys + (down.rows if down else 0))  # before and after their norms
        keys, values = q, v
    before_norms = q + keys if any("q_norm" in name for name in parts) else 0
    return {
        "q": q,
        "k": keys,
        "v": values,
        "latents": latents,
        "before norms": before_norms,
        "attention": v,
        "log-sum-exp": 4 * network.heads // _NUMBER,
    }


def _mlp(network: Network, parts: Mapping[str, TensorInfo]) -> int:
    up, down = parts.get("ffn_up.weight"), parts.get("ffn_down.weight")
    fused = up is not None and down is not None and up.rows == 2 * down.cols
    gated = fused or any(name.startswith("ffn_gate") and "gate_inp" not in name for name in parts)
    gated = gated or not any(name.startswith("ffn_up") for name in parts)
    routed = network.experts > 0 and any(_ROUTED.search(name) for name in parts)
    inner = network.intermediate if routed or down is None else down.cols
    each = 2 * network.hidden * network.experts_used if routed else 0
    return (4 if gated else 2) * inner + each


def _logits(network: Network) -> int:
    """Bytes a token: float32, and their gradient."""
    return 2 * 4 * network.vocab


def _linears(network: Network) -> list[TensorInfo]:
    """Matrices of the layers, experts too; no routers."""
    return [
        tensor
        for tensor in network.tensors
        if layer_of(tensor.name) >= 0
        and len(tensor.shape) > 1
        and tensor.name.endswith(".weight")
        and not _APART.search(tensor.name)
    ]


def _adapted(network: Network) -> list[TensorInfo]:
    return [tensor for tensor in _linears(network) if not _ROUTED.search(tensor.name)]


def _nf4_weights(network: Network) -> int:
    """Linears in NF4, the largest of them unpacked, the rest in bf16; bytes."""
    linears = _linears(network)
    packed = sum(_nf4_bytes(tensor.parameters) for tensor in linears)
    rest = network.parameters - sum(tensor.parameters for tensor in linears)
    return packed + _NUMBER * (rest + max((_matrix(tensor) for tensor in linears), default=0))


def _nf4_bytes(weights: int) -> int:
    """Dettmers et al. 2023, section 3: 4 + 8/64 + 32/(64 x 256) bits a weight, whole blocks."""
    scales = -(-weights // _NF4_BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // _SUPER_BLOCK)


def _matrix(tensor: TensorInfo) -> int:
    """Weights that are unpacked at once: of stacked experts one."""
    stacked = len(tensor.shape) > 2 and _ROUTED.search(tensor.name)
    return tensor.parameters // tensor.shape[0] if stacked else tensor.parameters


def _fake_quantized(network: Network, checkpointing: bool) -> int:
    """Bytes of quantized copies and masks that autograd keeps."""
    layers: dict[int, int] = {}
    for tensor in _linears(network):
        layer = layer_of(tensor.name)
        layers[layer] = layers.get(layer, 0) + tensor.parameters
    weights = max(layers.values(), default=0) if checkpointing else sum(layers.values())
    return (_NUMBER + _MASK) * weights


def _of_method(method: str, rank: int, checkpointing: bool) -> Sequence[str]:
    adapters = (
        f"Adapters of rank {rank} on every matrix of attention and MLP, none on routed experts or routers.",
        "Activations are counted as in full fine-tuning, an upper bound: a matrix that has no adapter keeps no input.",
    )
    if method == "lora":
        return ("LoRA: the model stays as it is in bf16.", *adapters)
    if method == "qlora":
        return (
            "QLoRA: matrices of the layers are NF4 at 4.127 bits a weight, experts too; the rest is bf16.",
            "Weights of QLoRA include one matrix, the largest, unpacked to bf16.",
            *adapters,
        )
    if method == "qat":
        kept = "one layer" if checkpointing else "every layer"
        return (
            f"QAT: activations include quantized copies and clipping masks of {kept}, 3 bytes a weight.",
            "QAT: no teacher model.",
        )
    return ("Full fine-tuning trains every parameter.",)


def _of_optimizer(optimizer: str) -> Sequence[str]:
    moments = "in 8 bits" if optimizer == "adamw-8bit" else "in float32 too"
    return (f"Gradients are bf16; the optimizer holds float32 master weights, momentum and variance {moments}.",)


def _of_activations(network: Network, tokens: int, checkpointing: bool) -> Sequence[str]:
    said = ["Checkpointing: each layer's input is kept, one layer is recomputed at a time."]
    if not checkpointing:
        norms = 4 * network.hidden * tokens * sum(_norm_count(parts) for parts in _by_layer(network).values())
        said = [f"All activations are kept; norms that are not one kernel would keep {norms / 1e9:.1f} GB more."]
    said += [
        "FlashAttention keeps no scores; no dropout.",
        f"Logits and their gradient, float32, are {_logits(network) * tokens / 1e9:.1f} GB of the activations.",
        "One device, without buffers of kernels and the framework's own.",
    ]
    if any(cache.state for cache in network.caches) or any(t.name.endswith(".rest.weight") for t in network.tensors):
        said.append("Not every layer of this family is known in detail: activations and adapters are rough.")
    return said
