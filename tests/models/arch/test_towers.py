"""Towers for images: their names and keys in an mmproj file, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import bitsmith
from bitsmith.containers.gguf.reader import GgufSource
from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.towers import tower_note, tower_of

VISION = {"hidden_size": 8, "intermediate_size": 16, "depth": 2, "num_heads": 2, "patch_size": 4}
VISION |= {"num_position_embeddings": 9, "deepstack_visual_indexes": [1], "spatial_merge_size": 2}
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "text_config": {"hidden_size": 12, "rms_norm_eps": 1e-5},
    "vision_config": VISION,
}
PROCESSOR = {"image_processor": {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.75]}}
PATCHES = np.arange(8 * 3 * 2 * 4 * 4, dtype=np.float32).reshape(8, 3, 2, 4, 4)


def folder(path: Path, config: dict[str, Any] = CONFIG, **further: np.ndarray) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "processor_config.json").write_text(json.dumps(PROCESSOR))
    tensors = {
        "model.visual.patch_embed.proj.weight": PATCHES,
        "model.visual.pos_embed.weight": np.ones((9, 8), np.float32),
        "model.visual.blocks.1.attn.qkv.weight": np.ones((24, 8), np.float32),
        "model.visual.deepstack_merger_list.0.linear_fc1.bias": np.ones(32, np.float32),
        "model.language_model.embed_tokens.weight": np.ones((16, 12), np.float32),
    }
    save_file(tensors | further, path / "model.safetensors")
    return path


def test_a_tower_becomes_a_file(tmp_path: Path) -> None:
    made = bitsmith.convert(folder(tmp_path / "m"), to="mmproj", out=tmp_path)
    assert made.out.name == "mmproj-m-F16.gguf"
    with GgufSource(made.out) as source:
        assert source.metadata["general.architecture"] == "clip"
        assert source.metadata["clip.projector_type"] == "qwen3vl_merger"
        assert source.metadata["clip.vision.image_size"] == 12
        assert np.asarray(source.metadata["clip.vision.is_deepstack_layers"]).tolist() == [False, True]
        assert np.asarray(source.metadata["clip.vision.image_mean"]).tolist() == [0.5, 0.25, 0.125]
        layouts = {name: info.layout for name, info in source.tensors.items()}
        assert layouts == {
            "v.patch_embd.weight": "f16",
            "v.patch_embd.weight.1": "f16",
            "v.position_embd.weight": "f32",
            "v.blk.1.attn_qkv.weight": "f16",
            "v.deepstack.1.fc1.bias": "f32",
        }
        for time, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
            found = source.rows(name).reshape(source.tensors[name].shape)
            np.testing.assert_array_equal(found, PATCHES[:, :, time])


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    strange = {"model.visual.blocks.0.gate.weight": np.ones((2, 8), np.float32)}
    with pytest.raises(UnsupportedError, match=r"model\.visual\.blocks\.0\.gate\.weight"):
        bitsmith.convert(folder(tmp_path / "a", **strange), to="mmproj", out=tmp_path / "a.gguf")
    other = CONFIG | {"architectures": ["LlavaForConditionalGeneration"]}
    with pytest.raises(UnsupportedError, match="writes mmproj files for Gemma3ForConditionalGeneration"):
        bitsmith.convert(folder(tmp_path / "b", other), to="mmproj", out=tmp_path / "b.gguf")
    assert "no mmproj file" in tower_note(other)
    path = folder(tmp_path / "c")
    (path / "processor_config.json").unlink()
    with pytest.raises(FileError, match=r"preprocessor_config\.json is missing"):
        bitsmith.convert(path, to="mmproj", out=tmp_path / "c.gguf")
    short = CONFIG | {"vision_config": {key: value for key, value in VISION.items() if key != "num_heads"}}
    with pytest.raises(FileError, match="num_heads"):
        bitsmith.convert(folder(tmp_path / "d", short), to="mmproj", out=tmp_path / "d.gguf")
    gguf = bitsmith.quantize("reference", to="q8_0", out=tmp_path / "text.gguf").out
    with pytest.raises(UnsupportedError, match="holds no parts for images"):
        bitsmith.convert(gguf, to="mmproj", out=tmp_path / "e.gguf")
    with pytest.raises(UnsupportedError, match="one without a tower"):
        bitsmith.convert("reference", to="mmproj", out=tmp_path / "f.gguf")


def test_towers_are_found_by_class_and_kind() -> None:
    assert tower_of(CONFIG) is not None
    assert "mmproj" in tower_note(CONFIG)
    assert tower_of({"architectures": ["Mistral3ForConditionalGeneration"], "vision_config": {}}) is None
    assert tower_of({"architectures": ["LlamaForCausalLM"]}) is None
