"""Memory of training: weights, gradients, optimizer and activations of full fine-tuning, LoRA, QLoRA and QAT."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bitsmith.errors import UsageError, quoted
from bitsmith.planner.network import LayerCache, Network
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.category import layer_of

METHODS = ("full", "lora", "qlora", "qat", "qat-all")
OPTIMIZERS: Mapping[str, int] = {  # bytes for each trained parameter: float32 master weight, momentum, variance
    "adamw": 4 + 4 + 4,  # ZeRO (Rajbhandari et al. 2020), section 3.1
    "adamw-8bit": 4 + 1 + 1,  # Dettmers et al. 2021, section 2; without the one float32 for each block of 2048
}

QAT_LOGITS = 1 << 22  # logits that `tune qat` computes at once, but those of a window at least
SLAB_ROWS, SLAB_LOGITS = 2048, 1 << 21  # tokens, and logits, of which `tune qlora` computes the loss at once

_NUMBER = 2  # bytes, bf16
_MASTER = 4  # bytes of a float32 master weight
_CODE = 1  # byte
_SCALED = 64  # weights that share a scale, as a rule
_QAT_LOGITS = 6  # copies of logits: these, logarithms, probabilities, and the gradients of each
_DECODED = 4 + 2  # bytes of a decoded weight in float32, and as it is multiplied
_NF4_BLOCK, _SUPER_BLOCK = 64, 256  # weights for each 8-bit scale; scales for each float32 scale
_RECURRENT = 12  # numbers kept for each number of the hidden state

_ATTENTION = "Attention is FlashAttention, which keeps no scores. There is no dropout."
_ONE_DEVICE = "Training runs on one device. Buffers of kernels and of the framework are not counted."

_APART = re.compile(r"norm|conv|gate_inp|sinks")  # tensors of a layer that are no linears, and routers
_ROUTED = re.compile(r"_exps\.|\.experts\.")
_LAYER_NORM = re.compile(r"(?<![qk])(?<!_a)_norm(_2)?\.weight$")


@dataclass(frozen=True)
class Training:
    """Bytes that training takes at its peak, on one device.

    weights: bytes of the weights in bf16, or in NF4 with one unpacked matrix, or for qat in float32 with codes;
        adapters included
    gradients: bytes of the gradients of the trained parameters, in bf16, or for qat in float32
    optimizer: bytes of float32 master weights, momentum and variance; for qat also of the best state so far
    activations: bytes kept for the backward pass, with logits and, for qat, decoded weights
    trained: number of parameters that receive gradients
    checkpointing: True if layers are recomputed in the backward pass
    assumptions: one sentence each
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
    number: int = _NUMBER,
) -> Training:
    """Memory of training with a method of METHODS and an optimizer of OPTIMIZERS.

    Methods:
    full: a parameter takes 2 bytes of weights, 2 of gradients and 12 of AdamW. ZeRO (Rajbhandari et al. 2020),
        section 3.1
    lora: weights are frozen in bf16. Every linear of attention and MLP has an adapter with rank x (in + out)
        parameters of 16 bytes; routed experts and routers have none. Hu et al. 2021, section 4.1, equation 3
    qlora: linears of the layers are NF4 with 8-bit scales for 64 weights and float32 scales for 256 of these scales:
        4.127 bits a weight. The rest is bf16. The largest matrix is unpacked to bf16 to multiply. Dettmers et al.
        2023, section 3
    qat, qat-all: `bitsmith tune qat` with `--train scales` and `all`, which computes in float32: the layers' linears
        take 4 bytes a weight and 1 of its code; embedding and head are there twice. With `all` a weight has a trained
        offset of 4 bytes, and 16 beside it. One block keeps decoded weights, without checkpointing all

    context, batch: number of tokens of a sequence; number of sequences at once
    rank: rank of the adapters of lora and qlora
    checkpointing: see `activation_bytes`
    number: bytes of a weight that is not quantized, of a gradient and of an activation: 2, or 4 where the training
        computes in float32, which needs no master weights
    Raises UsageError for an unknown method or optimizer, and for numbers below one.
    """
    if method not in METHODS:
        raise UsageError(f"--training={quoted(method)}: unknown; expected {', '.join(METHODS)}.")
    if optimizer not in OPTIMIZERS:
        raise UsageError(f"--optimizer={quoted(optimizer)}: unknown; expected {', '.join(OPTIMIZERS)}.")
    if rank < 1:
        raise UsageError(f"--rank={rank}: expected 1 or more.")
    if method in ("qat", "qat-all"):
        return _qat(network, method, context=context, batch=batch, checkpointing=checkpointing, optimizer=optimizer)
    slabs, sizes = method in ("lora", "qlora"), {"context": context, "batch": batch, "number": number}
    activations = activation_bytes(network, **sizes, checkpointing=checkpointing, slabs=slabs)
    weights, trained = number * network.parameters, network.parameters
    if slabs:
        trained = adapter_parameters(_adapted(network), rank)
        weights = number * trained + (weights if method == "lora" else _nf4_weights(network, number))
    return Training(
        method=method,
        weights=weights,
        gradients=number * trained,
        optimizer=(OPTIMIZERS[optimizer] - (_MASTER if number == _MASTER else 0)) * trained,
        activations=activations,
        trained=trained,
        checkpointing=checkpointing,
        assumptions=(
            *_of_method(method, rank),
            *(_of_optimizer(optimizer) if number == _NUMBER else ("All numbers are float32.",)),
            *_of_activations(network, context * batch, checkpointing, slabs=slabs),
        ),
    )


def activation_bytes(
    network: Network,
    *,
    context: int,
    batch: int,
    checkpointing: bool,
    number: int = _NUMBER,
    slabs: bool = False,
) -> int:
    """Bytes kept for the backward pass: `kept_numbers` of each layer, the last norm, and the logits.

    checkpointing: only each layer's input is kept, 2 bytes x hidden for each token (Korthikanti et al. 2022,
        section 5); one layer at a time is recomputed, and the largest counts
    Logits, their log-softmax and the gradient are float32, context x batch x vocab each, as in transformers, which also
    keeps the 16-bit logits that the first are made of. With checkpointing and a large vocabulary they are the largest
    part. They are freed before the first layer is recomputed.
    slabs: logits are computed for SLAB_LOGITS at a time, and only the gradient of the last norm's output is kept
    Gradients of activations are not counted, since they fit into that memory. Frozen weights do not change the result.
    Raises UsageError for numbers below one.
    """
    if context < 1:
        raise UsageError(f"--context={context}: expected 1 or more tokens.")
    if batch < 1:
        raise UsageError(f"--batch={batch}: expected 1 or more sequences.")
    parts = _by_layer(network)
    layers = [
        sum(kept_numbers(network, cache, parts.get(layer, {})).values()) for layer, cache in enumerate(network.caches)
    ]
    kept = network.hidden * len(layers) + max(layers, default=0) if checkpointing else sum(layers)
    last_norm = 2 * network.hidden
    tokens = context * batch
    logits = _slab(network, tokens, number) if slabs else tokens * _logits(network, number)
    return tokens * number * (kept + last_norm) + logits


def kept_numbers(network: Network, cache: LayerCache, parts: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Numbers of 2 bytes that one layer keeps for one token, without checkpointing.

    parts: the layer's tensors, by their names without "blk.N."; if they are unknown, the usual parts are assumed
    Entries of the result:
    norms: inputs and outputs of the norms before attention and MLP; only inputs of norms after them
    q, k, v: inputs of the attention; with norms on them, also the values before the norms; for latent attention, also
        the latents
    attention: output of the attention
    log-sum-exp: one float32 for each head, in place of the scores (FlashAttention-2, Dao 2023, section 3.1.1); a
        window does not change it
    mlp: gate, up, activated gate and their product; without a gate, up and activated up; for routed MLPs these of the
        chosen experts, with each expert's input and output
    recurrent: in place of attention, 12 x hidden. Mamba (Gu and Dao 2023) keeps about this at an expansion of 2: x, z,
        and the outputs of convolution, step, scan and gate

    The method follows Korthikanti et al. 2022, equation 1: s b h (34 + 5 a s / h) bytes for a layer of a GPT. There, 2
    of the 34 are dropout masks, and 5 a s / h are scores with their dropout. Neither is kept here, which leaves 32. A
    norm counts as one kernel. transformers computes norms step by step in float32, and keeps 4 bytes x hidden more for
    each.
    """
    norms = _norm_count(parts)
    kept = 2 * min(norms, 2) + max(norms - 2, 0)
    mixing = {"recurrent": _RECURRENT * network.hidden} if cache.state else _attention(network, cache, parts)
    return {"norms": kept * network.hidden, **mixing, "mlp": _mlp(network, parts)}


def adapter_parameters(matrices: Iterable[TensorInfo], rank: int) -> int:
    """Number of parameters with an adapter on each matrix: rank x (in + out). Hu et al. 2021, section 4.1."""
    return sum(rank * sum(_ends(matrix)) for matrix in matrices)


def _ends(matrix: TensorInfo) -> tuple[int, int]:
    """Number of inputs and outputs. GGUF splits latent attention's key projection by head and transposes it."""
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
    """Number of norms of the hidden state; two if they are unknown."""
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


def _logits(network: Network, number: int = _NUMBER) -> int:
    """Bytes of logits, their log-softmax and the gradient for one token, in float32, and of the logits in 16 bits."""
    return (3 * 4 + (number if number < _MASTER else 0)) * network.vocab


def _slab(network: Network, tokens: int, number: int) -> int:
    """Bytes of the logits of a slab, in float32 and twice as they are multiplied, and of what the head's input gets."""
    rows = min(tokens, SLAB_ROWS)
    words = min(network.vocab, max(1, SLAB_LOGITS // rows))
    sums = rows * network.hidden * (4 + number)
    return rows * words * (8 if number < _MASTER else 4 + number) + words * network.hidden * number + sums


def _linears(network: Network) -> list[TensorInfo]:
    """Matrices of the layers, with experts and without routers."""
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


def _nf4_weights(network: Network, number: int) -> int:
    """Bytes of the weights for qlora: linears in NF4, the largest of them unpacked too, the rest of `number` bytes."""
    linears = _linears(network)
    packed = sum(_nf4_bytes(tensor.parameters) for tensor in linears)
    rest = network.parameters - sum(tensor.parameters for tensor in linears)
    return packed + number * (rest + max((_matrix(tensor) for tensor in linears), default=0))


def _nf4_bytes(weights: int) -> int:
    """Bytes in NF4: 4 + 8/64 + 32/(64 x 256) bits a weight, in whole blocks. Dettmers et al. 2023, section 3."""
    scales = -(-weights // _NF4_BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // _SUPER_BLOCK)


def _matrix(tensor: TensorInfo) -> int:
    """Number of weights that are unpacked at once. For stacked experts: one expert."""
    stacked = len(tensor.shape) > 2 and _ROUTED.search(tensor.name)
    return tensor.parameters // tensor.shape[0] if stacked else tensor.parameters


def _qat(network: Network, method: str, *, context: int, batch: int, checkpointing: bool, optimizer: str) -> Training:
    """Memory of `bitsmith tune qat`, see `training_memory`."""
    activations = activation_bytes(
        network, context=context, batch=batch, checkpointing=checkpointing, number=_MASTER, slabs=True
    )
    activations -= _slab(network, context * batch, _MASTER)
    activations += (
        _MASTER * _QAT_LOGITS * min(context * batch, max(context, QAT_LOGITS // network.vocab)) * network.vocab
    )
    layers: dict[int, int] = {}
    for tensor in _linears(network):
        layer = layer_of(tensor.name)
        layers[layer] = layers.get(layer, 0) + tensor.parameters
    linears = sum(layers.values())
    activations += _DECODED * (max(layers.values(), default=0) if checkpointing else linears)
    every = method == "qat-all"
    trained = linears // _SCALED + (linears if every else 0)
    ends = network.parameters - linears  # embedding and head: the student's, and the original's head
    headed = any(tensor.name == "output.weight" for tensor in network.tensors)
    moments = OPTIMIZERS[optimizer] - _MASTER
    states = (_MASTER if every else 0) * linears  # offsets
    return Training(
        method=method,
        weights=(_MASTER + _CODE) * linears + _MASTER * (3 * ends // 2 if headed else 2 * ends) + states,
        gradients=_MASTER * trained,
        optimizer=(moments + _MASTER) * trained,
        activations=activations,
        trained=trained,
        checkpointing=checkpointing,
        assumptions=(*_of_qat(network, moments, checkpointing), _ATTENTION, _ONE_DEVICE, *_rough(network)),
    )


def _of_qat(network: Network, moments: int, checkpointing: bool) -> Sequence[str]:
    kept = "one block" if checkpointing else "every block"
    return (
        "qat: `bitsmith tune qat --train scales`: codes stay, scales and norms are trained; 5 bytes a weight of the "
        "layers.",
        f"qat-all: `--train all`: the weights behind the codes too; {4 + 1 + 4 + 4 + 4 + moments} bytes a weight.",
        f"QAT computes in float32. Activations include the decoded weights of {kept}; `tune qat` keeps as many as a "
        "third of the free memory holds.",
        f"QAT keeps {_MASTER * network.hidden:,} bytes of the original for each token of its text, on disk where "
        "memory is short; these are not counted.",
    )


def _of_method(method: str, rank: int) -> Sequence[str]:
    adapters = (
        f"Every matrix of attention and MLP has an adapter of rank {rank}, except routed experts and routers.",
        "Activations are counted as in full fine-tuning, an upper bound: matrices without adapter keep no input.",
    )
    if method == "lora":
        return ("LoRA: the model's weights are bf16 and do not change.", *adapters)
    if method == "qlora":
        return (
            "QLoRA: matrices of the layers and experts are NF4 at 4.127 bits a weight; the rest is bf16.",
            "QLoRA: weights include the largest matrix, unpacked to bf16.",
            *adapters,
        )
    return ("Full fine-tuning trains every parameter.",)


def _of_optimizer(optimizer: str) -> Sequence[str]:
    moments = "in 8 bits" if optimizer == "adamw-8bit" else "in float32"
    return (f"Gradients are bf16. The optimizer holds float32 master weights, and momentum and variance {moments}.",)


def _of_activations(network: Network, tokens: int, checkpointing: bool, *, slabs: bool) -> Sequence[str]:
    whole = f"{_logits(network) * tokens / 1e9:.1f} GB"
    said = ["Checkpointing: only each layer's input is kept, and one layer at a time is recomputed."]
    if not checkpointing:
        norms = 4 * network.hidden * tokens * sum(_norm_count(parts) for parts in _by_layer(network).values())
        said = [f"All activations are kept. A norm is one kernel; with several, norms keep {norms / 1e9:.1f} GB more."]
    said += [
        _ATTENTION,
        f"Logits are computed by slabs, as `bitsmith tune qlora` does; all at once take {whole} more."
        if slabs
        else f"Activations include {whole} of float32 logits and their gradient.",
        _ONE_DEVICE,
    ]
    return [*said, *_rough(network)]


def _rough(network: Network) -> Sequence[str]:
    if any(cache.state for cache in network.caches) or any(t.name.endswith(".rest.weight") for t in network.tensors):
        return ("Some layers of this family are not known in detail: activations and adapters are rough estimates.",)
    return ()
