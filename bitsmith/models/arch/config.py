"""ModelConfig: the numbers that a decoder needs, from config.json or from GGUF keys."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from bitsmith.models.arch.families import FAMILIES
from bitsmith.models.arch.family import Decoder, Family

MAX_LAYERS = 4096  # no model has more; a file that says so is damaged
MAX_EXPERTS = 4096
_QKV = ("attn_q", "attn_k", "attn_v")
_OUTPUT = ("attn_output",)
_MLP = ("ffn_gate", "ffn_up", "ffn_down")
LINEARS = (*_QKV, *_OUTPUT, *_MLP)  # of a dense block, in the order of computation, without "blk.N." and ".weight"


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021).

    theta: base of the frequencies
    dim: number of rotated dimensions of a head
    interleaved: True if pairs are (0, 1), (2, 3), ... (GGUF's llama layout), False if they are (i, i + dim / 2)
        (Hugging Face). It depends on the file that holds the weights, not on the architecture.
    scaling: "none", "linear", "yarn" (Peng et al. 2023), "llama3" (Llama 3.1, by wavelength) or "longrope" (Ding et al.
        2024)
    factor: new context divided by original_context; 1.0 for "none"
    original_context: tokens of the pre-training context, for yarn and llama3
    low_freq_factor, high_freq_factor: parameters of llama3
    beta_fast, beta_slow: parameters of yarn
    truncate: whether yarn rounds the ends of its ramp to whole dimensions; gpt-oss does not
    attention_factor: multiplier of cos and sin; None for 0.1 ln(factor) + 1 with yarn, else for 1
    freq_factors: divisors of each frequency, [dim / 2]: GGUF's rope_freqs.weight; empty if there are none. Under
        longrope, those of texts up to original_context
    long_factors: under longrope, those of longer texts
    """

    theta: float = 10000.0
    dim: int = 0
    interleaved: bool = False
    scaling: Literal["none", "linear", "yarn", "llama3", "longrope"] = "none"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    freq_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Experts:
    """A mixture of experts.

    count, used: number of experts, and number that each token passes
    width: width of one expert
    shared: width of the expert that every token passes, with a gate of its own; 0 if there is none
    normalize: whether the weights of the chosen experts are divided by their sum
    layers: layers with experts, if not all have them; others have a dense MLP
    """

    count: int
    used: int
    width: int
    normalize: bool = True
    layers: tuple[int, ...] | None = None
    shared: int = 0


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta nets (Yang et al. 2024, arXiv:2412.06464), in place of attention in some layers.

    key_heads, value_heads: number of heads; value heads share a key head
    key_dim, value_dim: width of a head of q and k, and of one of v
    taps: length of the convolution of q, k and v
    layers: the layers that have one
    tiled: True if value head i belongs to key head i % key_heads, False if to i // (value_heads / key_heads). It
        depends on the file that holds the weights, see `ModelConfig.laid_out`
    fused: whether q, k, v and z are one matrix, the rows of a key head together
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    layers: tuple[int, ...]
    tiled: bool = False
    fused: bool = False

    @property
    def keys(self) -> int:
        """Width of all heads of k."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Width of all heads of v."""
        return self.value_heads * self.value_dim

    @property
    def mixed(self) -> int:
        """Width of q, k and v together, which pass the convolution."""
        return 2 * self.keys + self.values

    @property
    def state(self) -> int:
        """Numbers that a layer keeps of a sequence: a matrix a head, and the last inputs of the convolution."""
        return self.value_heads * self.key_dim * self.value_dim + (self.taps - 1) * self.mixed


@dataclass(frozen=True)
class LayerSpec:
    """What may differ between the layers of one model.

    head_dim, kv_heads: size of its heads, and number of those of keys and values
    intermediate: width of its MLP
    window: number of tokens that its attention sees; 0 for all
    rope: number of its rotation in `ModelConfig.ropes`; None for no rotation
    experts: whether it has a mixture of experts
    keys_of: the earlier layer whose keys and values it uses; None for its own
    keys_as_values: whether its values are its keys before norm and rotation
    mixer: what mixes tokens: "attention", or "delta" for a gated delta net
    """

    head_dim: int
    kv_heads: int
    intermediate: int
    window: int = 0
    rope: int | None = 0
    experts: bool = False
    keys_of: int | None = None
    keys_as_values: bool = False
    mixer: Literal["attention", "delta"] = "attention"


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder-only transformer. Tensor names are GGUF's, see `bitsmith.models.arch.names`.

    arch: key of `FAMILIES` ("llama", "mistral", "qwen2", ...)
    context: number of positions that the model was trained for (max_position_embeddings)
    window: sliding attention window in tokens; 0 for full attention
    window_layers: layers with a window; if it is empty and window > 0, all layers
    local_rope: rotation of the layers with a window; None if it is that of the others
    unrotated: layers without rotation
    tied: True if the output projection is the token embedding
    qkv_bias, output_bias, mlp_bias: True if these linears have a bias
    biases: the linears that have a bias ("blk.0.attn_q"), if only some of a kind do; None if the three flags say it
    qk_norm: True if there is an RMSNorm of q and k; the family says over what
    attention_scale: multiplier of attention scores; 0 for 1 / sqrt(head_dim)
    attention_softcap, logit_softcap: c tanh(x / c) is taken of scores and logits; 0 for none
    embedding_scale, residual_scale: multipliers of the embedding, and of what each operation adds
    logit_divisor: logits are divided by it
    sections: numbers of rotated pairs that follow time, height and width of an image; in texts all three are alike
    deepstack: number of layers that take further features of an image
    drafts: number of further layers in a GGUF file that draft tokens, and are not run
    temperature: queries at position p are multiplied by 1 + temperature ln(1 + floor(p / temperature_length)); 0: none
    full_head_dim, full_kv_heads: `head_dim` and `kv_heads` of layers without a window; 0 if they are no others
    keys_as_values: whether layers without a window take their keys for values, see `LayerSpec`
    shared_layers: number of the last layers that use the keys and values of the last layer of their kind before them
    wide_shared: whether the MLPs of these layers are twice as wide
    layer_width: width of the embedding of each layer; 0 if there is none
    """

    arch: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    norm_eps: float
    rope: Rope = field(default_factory=Rope)
    window: int = 0
    window_layers: tuple[int, ...] = ()
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    biases: frozenset[str] | None = None
    qk_norm: bool = False
    activation: str = "silu"
    local_rope: Rope | None = None
    unrotated: tuple[int, ...] = ()
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    temperature: float = 0.0
    temperature_length: int = 0
    experts: Experts | None = None
    delta: DeltaNet | None = None
    sections: tuple[int, ...] = ()
    deepstack: int = 0
    drafts: int = 0
    full_head_dim: int = 0
    full_kv_heads: int = 0
    keys_as_values: bool = False
    shared_layers: int = 0
    wide_shared: bool = False
    layer_width: int = 0

    @property
    def family(self) -> Family:
        """The row of `FAMILIES`."""
        return FAMILIES[self.arch]

    @property
    def decoder(self) -> Decoder:
        """What the family's row says for converting and running."""
        found = self.family.decoder
        assert found is not None, self.arch
        return found

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The rotations of the model, see `LayerSpec.rope`."""
        return (self.rope,) if self.local_rope is None else (self.rope, self.local_rope)

    @cached_property
    def specs(self) -> tuple[LayerSpec, ...]:
        """One `LayerSpec` a layer."""
        return tuple(self._spec(layer) for layer in range(self.layers))

    @cached_property
    def kept_layers(self) -> frozenset[int]:
        """The layers whose keys and values others use."""
        return frozenset(spec.keys_of for spec in self.specs if spec.keys_of is not None)

    def _slides(self, layer: int) -> bool:
        return bool(self.window) and (not self.window_layers or layer in self.window_layers)

    def _spec(self, layer: int) -> LayerSpec:
        slides = self._slides(layer)
        shares = layer >= self.layers - self.shared_layers
        return LayerSpec(
            head_dim=self.head_dim if slides else self.full_head_dim or self.head_dim,
            kv_heads=self.kv_heads if slides else self.full_kv_heads or self.kv_heads,
            intermediate=self.intermediate * (2 if shares and self.wide_shared else 1),
            window=self.window if slides else 0,
            rope=None if layer in self.unrotated else int(slides and self.local_rope is not None),
            experts=self.experts is not None and (self.experts.layers is None or layer in self.experts.layers),
            keys_of=self._producer(slides) if shares else None,
            keys_as_values=self.keys_as_values and not slides,
            mixer="delta" if self.delta is not None and layer in self.delta.layers else "attention",
        )

    def _producer(self, slides: bool) -> int:
        """The last layer of a kind that has keys and values of its own."""
        own = range(self.layers - self.shared_layers)
        return next(layer for layer in reversed(own) if self._slides(layer) == slides)

    def laid_out(self, naming: Literal["hf", "gguf"]) -> ModelConfig:
        """The configuration of the same model with its weights in the order of Hugging Face's or GGUF's files.

        The orders differ in gated delta nets only.
        """
        if self.delta is None:
            return self
        ours = naming == "gguf"
        delta = replace(
            self.delta, tiled=ours and self.family.delta == "apart", fused=not ours and self.family.delta == "fused"
        )
        return replace(self, delta=delta)

    def norm_offset(self, name: str) -> float:
        """What Hugging Face's files leave out of a tensor by GGUF's name, see `Decoder.norm_offset`."""
        offset = self.decoder.norm_offset and name.endswith("norm.weight") and not name.endswith("ssm_norm.weight")
        return 1.0 if offset else 0.0

    def has_bias(self, linear: str, layer: int) -> bool:
        """Whether a linear of a block has a bias; linear: GGUF's name without "blk.N." ("attn_q")."""
        if self.biases is not None:
            return f"blk.{layer}.{linear}" in self.biases
        if linear.startswith("ffn"):
            return self.mlp_bias
        return self.output_bias if linear == "attn_output" else self.qkv_bias

    def with_biases(self, found: Set[str]) -> ModelConfig:
        """The configuration of a model whose linears `found` have a bias ("blk.0.attn_q"); the others have none."""
        everywhere = [
            {f"blk.{layer}.{name}" for layer in range(self.layers) for name in kind} for kind in self._kinds()
        ]
        qkv, output, mlp = (bool(kind & found) for kind in everywhere)
        whole = all(kind <= found or not kind & found for kind in everywhere)
        biases = None if whole else frozenset(found)
        return replace(self, qkv_bias=qkv, output_bias=output, mlp_bias=mlp, biases=biases)

    def _kinds(self) -> tuple[tuple[str, ...], ...]:
        """The linears of a dense block whose biases one flag gives: q, k and v; the output; those of the MLP."""
        qkv = ("attn_qkv",) if self.family.fused_qkv else _QKV
        return qkv, _OUTPUT, _MLP[1:] if self.family.fused_gate else _MLP

    @property
    def biased_linears(self) -> tuple[str, ...]:
        """The linears of a dense block that may have a bias, in the order of computation."""
        return tuple(name for kind in self._kinds() for name in kind)
