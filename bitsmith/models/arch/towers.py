"""The parts for images of models beside their text decoder, as llama.cpp's converter writes them with --mmproj.

Source: llama.cpp's conversion/ (build 11434): gemma.py, qwen3vl.py, llava.py and base.py. One row a kind of tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitsmith.containers.derived import Derived, Piece
from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, boolean, f32, string, u32
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.fields import Fields
from bitsmith.models.arch.names import beside_decoder
from bitsmith.quant.tensor import TensorInfo

_MOST_BLOCKS = 512
_NUMBERED = re.compile(r"\.(\d+)\.")
_SIGLIP_BLOCK = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_QWEN_BLOCK = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
}
_PIXTRAL_BLOCK = {
    "attention_norm": "ln1",
    "ffn_norm": "ln2",
    **{f"attention.{part}_proj": f"attn_{part}" for part in ("q", "k", "v")},
    "attention.o_proj": "attn_out",
    **{f"feed_forward.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


@dataclass(frozen=True)
class Tower:
    """How one kind of tower is stored and described.

    projector: value of clip.projector_type
    names: Hugging Face's names without ".weight" and ".bias" -> GGUF's; "{n}" is the number of a block
    activation: the key that says which one it has: "use_gelu"; "" if hidden_act says it
    dropped: beginnings of the names of tensors that are not written
    floats: ends of GGUF names of tensors that stay in float32, beside vectors
    blocks, heads: the fields of vision_config with their numbers
    shifted: GGUF names of norms that are stored without their 1
    permuted: whether rows of q and k are reordered, as in Llama
    break_token: whether the embedding of the token [IMG_BREAK] belongs to it. llama.cpp's loader wants it, and its
        converter of this build leaves it out
    merge: the field with the number of patches that become one, and where it stands
    """

    projector: str
    names: Mapping[str, str]
    activation: Literal["use_gelu", ""] = "use_gelu"
    dropped: tuple[str, ...] = ()
    floats: tuple[str, ...] = ("v.position_embd.weight",)
    blocks: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    shifted: tuple[str, ...] = ()
    permuted: bool = False
    break_token: bool = False
    merge: Literal["", "vision", "whole"] = ""


_SIGLIP = Tower(
    "gemma3",
    {
        "vision_tower.vision_model.embeddings.patch_embedding": "v.patch_embd",
        "vision_tower.vision_model.embeddings.position_embedding": "v.position_embd",
        "vision_tower.vision_model.post_layernorm": "v.post_ln",
        "multi_modal_projector.mm_input_projection": "mm.input_projection",
        "multi_modal_projector.mm_soft_emb_norm": "mm.soft_emb_norm",
        **{f"vision_tower.vision_model.encoder.layers.{{n}}.{a}": f"v.blk.{{n}}.{b}" for a, b in _SIGLIP_BLOCK.items()},
    },
    dropped=("vision_tower.vision_model.head.",),
    floats=("v.position_embd.weight", "v.patch_embd.weight"),
    shifted=("mm.soft_emb_norm.weight",),
)
_QWEN3_VL = Tower(
    "qwen3vl_merger",
    {
        "visual.pos_embed": "v.position_embd",
        "visual.patch_embed.proj": "v.patch_embd",
        "visual.merger.linear_fc1": "mm.0",
        "visual.merger.linear_fc2": "mm.2",
        "visual.merger.norm": "v.post_ln",
        "visual.deepstack_merger_list.{n}.norm": "v.deepstack.{n}.norm",
        "visual.deepstack_merger_list.{n}.linear_fc1": "v.deepstack.{n}.fc1",
        "visual.deepstack_merger_list.{n}.linear_fc2": "v.deepstack.{n}.fc2",
        **{f"visual.blocks.{{n}}.{theirs}": f"v.blk.{{n}}.{ours}" for theirs, ours in _QWEN_BLOCK.items()},
    },
    blocks="depth",
    heads="num_heads",
    merge="vision",
)
_PIXTRAL = Tower(
    "pixtral",
    {
        "vision_tower.patch_conv": "v.patch_embd",
        "vision_tower.ln_pre": "v.pre_ln",
        "multi_modal_projector.norm": "mm.input_norm",
        "multi_modal_projector.linear_{n}": "mm.{n}",
        "multi_modal_projector.patch_merger.merging_layer": "mm.patch_merger",
        **{f"vision_tower.transformer.layers.{{n}}.{a}": f"v.blk.{{n}}.{b}" for a, b in _PIXTRAL_BLOCK.items()},
    },
    activation="",
    permuted=True,
    break_token=True,
    merge="whole",
)
TOWERS: Mapping[tuple[str, str], Tower] = {  # by class name and model_type of vision_config, "" for any
    ("Gemma3ForConditionalGeneration", "siglip_vision_model"): _SIGLIP,
    ("Qwen3VLForConditionalGeneration", ""): _QWEN3_VL,
    ("Qwen3VLMoeForConditionalGeneration", ""): _QWEN3_VL,
    ("Mistral3ForConditionalGeneration", "pixtral"): _PIXTRAL,
}


@dataclass(frozen=True)
class TowerTensor:
    """A tensor of an mmproj file. floats: whether it stays in float32; heads: of q and k whose rows are reordered"""

    name: str
    derived: Derived
    floats: bool
    heads: int = 0


def tower_of(config: Mapping[str, Any]) -> Tower | None:
    """The tower of a parsed config.json; None if it has none, or one that bitsmith does not know."""
    vision, classes = config.get("vision_config"), config.get("architectures")
    if not isinstance(vision, dict) or not isinstance(classes, list):
        return None
    kinds = ("", str(vision.get("model_type") or ""))
    return next((TOWERS[str(name), kind] for name in classes for kind in kinds if (str(name), kind) in TOWERS), None)


def tower_note(config: Mapping[str, Any]) -> str:
    """What becomes of the parts that GGUF files of the text decoder leave out."""
    if tower_of(config) is not None:
        return "`bitsmith convert MODEL --to mmproj` writes the parts for images as a file for llama.cpp"
    return "bitsmith writes no mmproj file of these parts; llama.cpp's converter may"


def tower_keys(config: Mapping[str, Any], processor: Mapping[str, Any], origin: str) -> dict[str, Value]:
    """The "clip." keys of an mmproj file.

    config, processor: parsed config.json, and preprocessor_config.json or processor_config.json
    Raises FileError for a missing or impossible field.
    """
    tower, text = _known(config, origin), config.get("text_config")
    vision = Fields(config["vision_config"], f"{origin}: vision_config")
    decoder = Fields(text if isinstance(text, dict) else config, origin)
    if not vision.has("image_size") and vision.has("num_position_embeddings"):
        image = int(vision.integer("num_position_embeddings") ** 0.5 * vision.integer("patch_size"))
    else:
        image = vision.integer("image_size")
    keys: dict[str, Value] = {
        "clip.has_vision_encoder": boolean(True),
        "clip.vision.projection_dim": u32(decoder.integer("hidden_size")),
        "clip.vision.image_size": u32(image),
        "clip.vision.patch_size": u32(vision.integer("patch_size")),
        "clip.vision.embedding_length": u32(vision.integer("hidden_size")),
        "clip.vision.feed_forward_length": u32(vision.integer("intermediate_size")),
        "clip.vision.block_count": u32(vision.integer(tower.blocks, maximum=_MOST_BLOCKS)),
        "clip.vision.attention.head_count": u32(vision.integer(tower.heads)),
        "clip.vision.image_mean": _numbers(processor, "image_mean"),
        "clip.vision.image_std": _numbers(processor, "image_std"),
        "clip.projector_type": string(tower.projector),
        f"clip.{_activation(tower, vision)}": boolean(True),
    }
    return keys | _own_keys(tower, vision, decoder, config, processor)


def _activation(tower: Tower, vision: Fields) -> str:
    """The key that says which activation a tower has."""
    if tower.activation:
        return tower.activation
    found = vision.text("hidden_act")
    if found not in ("silu", "gelu"):
        raise vision.fail("hidden_act", "silu or gelu", found)
    return f"use_{found}"


def _own_keys(
    tower: Tower, vision: Fields, decoder: Fields, config: Mapping[str, Any], processor: Mapping[str, Any]
) -> dict[str, Value]:
    """The keys in which towers differ."""
    keys: dict[str, Value] = {}
    if tower is _QWEN3_VL:
        eps = decoder.epsilon("rms_norm_eps", 1e-6)
        deep = vision.values.get("deepstack_visual_indexes") or []
        flags = [layer in deep for layer in range(vision.integer(tower.blocks))]
        keys["clip.vision.is_deepstack_layers"] = array(flags, ValueType.BOOL)
    else:
        eps = vision.epsilon("layer_norm_eps", 1e-5 if tower is _PIXTRAL else 1e-6)
    keys["clip.vision.attention.layer_norm_epsilon"] = f32(eps)
    whole = Fields(config, decoder.origin)
    merge = {"vision": vision, "whole": whole, "": None}[tower.merge]
    if merge is not None and merge.has("spatial_merge_size"):
        keys["clip.vision.spatial_merge_size"] = u32(merge.integer("spatial_merge_size"))
    if tower is _SIGLIP:
        tokens = processor.get("image_seq_length", 256)
        side = int(tokens**0.5) if isinstance(tokens, int) and tokens > 0 else 16
        factor = vision.integer("image_size") // vision.integer("patch_size") // side
        if factor > 0 and factor != 4:
            keys["clip.vision.projector.scale_factor"] = u32(factor)
    return keys


def tower_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], origin: str, *, break_token: int | None = None
) -> Iterator[TowerTensor]:
    """The tensors of an mmproj file, in the order of the model's names.

    break_token: number of the token [IMG_BREAK], for towers that need it
    Raises UnsupportedError for a tensor of the tower that bitsmith does not know, FileError if one is missing.
    """
    tower, found = _known(config, origin), 0
    heads = Fields(config["vision_config"], f"{origin}: vision_config").integer(tower.heads)
    for name, info in tensors.items():
        usual = _usual(name)
        if not beside_decoder(name) or usual.startswith(tower.dropped or ("\0",)):
            continue
        found += 1
        yield from _written(tower, config, name, usual, info, heads)
    if not found:
        raise FileError(f"{origin}: the configuration has a vision_config, but the files hold no tensors of a tower.")
    if tower.break_token:
        if break_token is None:
            raise FileError(f"{origin}: the tokenizer has no token [IMG_BREAK], which llama.cpp needs for images.")
        table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        piece = Piece(table, break_token, 1)
        yield TowerTensor("v.token_embd.img_break", Derived((tensors[table].cols,), (piece,)), True)


def _known(config: Mapping[str, Any], origin: str) -> Tower:
    found = tower_of(config)
    if found is None:
        known = ", ".join(dict.fromkeys(name for name, _ in TOWERS))
        raise UnsupportedError(
            f"{origin}: bitsmith writes mmproj files for {known}, and this is another model, or one without a tower. "
            "Try convert_hf_to_gguf.py with the flag mmproj of llama.cpp."
        )
    return found


def _usual(name: str) -> str:
    """The name as folders had it before transformers 5."""
    name = name.removeprefix("model.")
    if name.startswith("vision_tower.") and re.match(r"vision_tower\.(embeddings|encoder|post_layernorm|head)\.", name):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return re.sub(r"_weight$", ".weight", name)


def _written(
    tower: Tower, config: Mapping[str, Any], name: str, usual: str, info: TensorInfo, heads: int
) -> Iterator[TowerTensor]:
    """What becomes of one tensor: itself, or the two halves of a convolution over time."""
    stem, _, kind = usual.rpartition(".")
    number = _NUMBERED.search(f"{stem}.") or re.search(r"linear_(\d+)", stem)
    pattern = stem if number is None else f"{stem}."[: number.start(1)] + "{n}" + f"{stem}."[number.end(1) : -1]
    ours = tower.names.get(stem) or tower.names.get(pattern)
    if ours is None or kind not in ("weight", "bias"):
        raise UnsupportedError(
            f"{name}: bitsmith does not know this tensor of the tower; use llama.cpp's converter, and tell us."
        )
    block = 0 if number is None else int(number[1])
    if ours.startswith("v.deepstack"):
        deep = config["vision_config"].get("deepstack_visual_indexes") or []
        if block >= len(deep):
            raise FileError(f"{name}: vision_config names {len(deep)} deepstack_visual_indexes, found one more.")
        block = int(deep[block])
    full = f"{ours.replace('{n}', str(block))}.{kind}"
    rows, shape = info.rows, info.shape
    if len(shape) == 5:
        yield from _halves(name, full, shape)
        return
    turned = tower.permuted and re.search(r"\.attn_[qk]\.", full) is not None
    floats = len(shape) < 2 or full in tower.floats
    shift = 1.0 if full in tower.shifted else 0.0
    yield TowerTensor(full, Derived(shape, (Piece(name, 0, rows),), shift), floats, heads if turned else 0)


def _halves(name: str, full: str, shape: tuple[int, ...]) -> Iterator[TowerTensor]:
    """A convolution over two images in time, [out, in, 2, rows, cols], as two over one."""
    out, into, times, rows, cols = shape
    if times != 2:
        raise UnsupportedError(f"{name}: temporal_patch_size {times} is not known; expected 2.")
    for time in range(2):
        pieces = tuple(Piece(name, (at * times + time) * rows, rows) for at in range(out * into))
        yield TowerTensor(f"{full}.1" if time else full, Derived((out, into, rows, cols), pieces), False)


def _numbers(processor: Mapping[str, Any], name: str) -> Value:
    values = processor.get(name)
    if not isinstance(values, list) or not all(isinstance(value, int | float) for value in values):
        raise FileError(
            f"preprocessor_config.json: {name}: expected numbers for the colours of images, found {values!r}; without "
            "the file llama.cpp cannot scale images: download the whole model."
        )
    return array([float(value) for value in values], ValueType.FLOAT32)
