"""Names of hub models as people write them, and the choice among GGUF files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitsmith.errors import FileError, UsageError
from bitsmith.models.gguf_choice import choose, models_among, names_of, quantization_in, short_name
from bitsmith.models.hub_name import HubName, looks_like_hub_name, parse_hub_name
from bitsmith.models.naming import file_name, folder_name, output_stem

BY_URL = HubName("owner/name", "b.gguf", None, "main")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubName("owner/name")),
        ("owner/name:latest", HubName("owner/name")),
        ("owner/name:Q4_K_M", HubName("owner/name", tag="Q4_K_M")),
        ("owner/name:q4_k_m", HubName("owner/name", tag="q4_k_m")),
        ("owner/name:file.gguf", HubName("owner/name", "file.gguf")),
        ("owner/name:sub dir/file (1).gguf", HubName("owner/name", "sub dir/file (1).gguf")),
        ("hf.co/owner/name", HubName("owner/name")),
        ("hf.co/owner/name:IQ2_XS", HubName("owner/name", tag="IQ2_XS")),
        ("HF.co/owner/name:file.gguf", HubName("owner/name", "file.gguf")),
        ("huggingface.co/owner/name", HubName("owner/name")),
        ("https://huggingface.co/owner/name", HubName("owner/name")),
        ("https://huggingface.co/owner/name/", HubName("owner/name")),
        ("https://huggingface.co/owner/name?library=x#y", HubName("owner/name")),
        ("https://huggingface.co/owner/name:Q8_0", HubName("owner/name", tag="Q8_0")),
        ("https://huggingface.co/owner/name/tree/main", HubName("owner/name", revision="main")),
        ("https://huggingface.co/owner/name/blob/v1/a/b.gguf", HubName("owner/name", "a/b.gguf", None, "v1")),
        (
            "https://huggingface.co/owner/name/resolve/main/b.gguf?download=true",
            HubName("owner/name", "b.gguf", None, "main"),
        ),
    ],
)
def test_every_way_of_writing_a_name(text: str, expected: HubName) -> None:
    assert looks_like_hub_name(text)
    assert parse_hub_name(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a/b:../../x",
            "a/b:../../x.gguf",
            "a/b:/etc/x.gguf",
            "a/b:x//y.gguf",
            "a/b:",
            "a/b:..",
            "a/b:x\x1b[31m.gguf",
        ),
        *(
            "hf.co/a",
            "https://huggingface.co/a/b/c",
            "a/b:file.bin/x",
            "https://huggingface.co/a/b/blob/main/../../x.gguf",
        ),
    ],
)
def test_wrong_names_are_explained(text: str) -> None:
    assert looks_like_hub_name(text)
    with pytest.raises(UsageError, match=r"expected|give its path") as caught:
        parse_hub_name(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text", ["name", "./owner/name", "a/b/c", "/a/b", "models/missing.gguf", "x/model.safetensors"]
)
def test_paths_are_not_names(text: str) -> None:
    assert not looks_like_hub_name(text)


FILES = {
    **{"README.md": 1, "mmproj-model-f16.gguf": 5, "imatrix.gguf": 2, "mtp-m-Q8_0.gguf": 3, "m-BF16/m-BF16.gguf": 16},
    **{"m-Q2_K.gguf": 2, "m-Q8_0.gguf": 8, "m-UD-Q4_K_M.gguf": 4, "m-Q4_K_M.gguf": 4, "m.IQ3_XXS.gguf": 3},
    **{f"Q6_K/m-Q6_K-0000{n}-of-00003.gguf": 10 for n in (1, 2, 3)},
}


def test_models_among_files() -> None:
    models = models_among(FILES)
    assert names_of(models) == ["Q6_K", "BF16", "Q2_K", "Q4_K_M", "Q8_0", "UD-Q4_K_M", "IQ3_XXS"]
    (split,) = [model for model in models if model.tag == "Q6_K"]
    assert (len(split.parts), split.size, split.missing) == (3, 30, ())
    assert models_among({"a\x1b[31m-Q8_0.gguf": 1}) == []
    (partial,) = models_among({"m-00002-of-00002.gguf": 7})
    assert (partial.first, partial.missing) == ("m-00001-of-00002.gguf", ("m-00001-of-00002.gguf",))


@pytest.mark.parametrize(
    ("tag", "first"),
    [
        (None, "m-Q4_K_M.gguf"),
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("ud-q4_k_m", "m-UD-Q4_K_M.gguf"),
        ("Q6_K", "Q6_K/m-Q6_K-00001-of-00003.gguf"),
        ("iq3_xxs", "m.IQ3_XXS.gguf"),
        ("bf16", "m-BF16/m-BF16.gguf"),
    ],
)
def test_the_choice(tag: str | None, first: str) -> None:
    assert choose(models_among(FILES), tag, where="o/r").first == first


def test_the_choice_without_a_tag_is_llama_cpps() -> None:
    def taken(*files: str) -> str:
        return choose(models_among(dict.fromkeys(files, 1)), None, where="o/r").first

    assert taken("m-Q2_K.gguf", "m-Q8_0.gguf") == "m-Q8_0.gguf"
    assert taken("m-Q5_0.gguf", "m-Q2_K.gguf") == "m-Q2_K.gguf"
    assert taken("other.gguf") == "other.gguf"


@pytest.mark.parametrize("tag", ["Q9_X", "Q4_K", "K_M", "3_XXS"])
def test_a_wrong_tag_lists_those_that_exist(tag: str) -> None:
    with pytest.raises(FileError, match=rf"no quantization '{tag}'; it has Q6_K, BF16, Q2_K, Q4_K_M"):
        choose(models_among(FILES), tag, where="o/r")


def test_two_models_of_one_quantization_are_named_by_file() -> None:
    models = models_among({"a-Q8_0.gguf": 1, "b-Q8_0.gguf": 1})
    assert [short_name(model, models) for model in models] == ["Q8_0", "b-Q8_0.gguf"]


@pytest.mark.parametrize(
    ("path", "tag"),
    [("M-q4_0.gguf", "Q4_0"), ("Qwen3-0.6B.gguf", None), ("gpt-oss-20b-mxfp4.gguf", "MXFP4"), ("m.f16.gguf", "F16")],
)
def test_quantizations_in_names(path: str, tag: str | None) -> None:
    assert quantization_in(path) == tag


def test_a_snapshot_of_the_hubs_cache_is_named_after_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--owner--My-Model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    assert folder_name(snapshot) == "My-Model"
    assert file_name(snapshot / "model.safetensors") == "My-Model"
    assert file_name(snapshot / "model-00001-of-00002.safetensors") == "My-Model"
    assert file_name(snapshot / "ggml-model-Q4_K_M.gguf") == "My-Model-Q4_K_M"
    assert file_name(snapshot / "Other-Q8_0-00001-of-00002.gguf") == "Other-Q8_0"
    assert folder_name(tmp_path / "models--gpt2" / "snapshots" / COMMIT) == "gpt2"
    monkeypatch.chdir(snapshot)
    assert folder_name(Path(".")) == "My-Model"
    assert folder_name(Path("..")) == "My-Model"
    assert folder_name(Path("/")) == "model"
    assert folder_name(tmp_path / "fine-tuned" / "snapshot") == "fine-tuned"
    assert folder_name(tmp_path / "blobs" / COMMIT) == "blobs"


@pytest.mark.parametrize(
    ("name", "stem"), [("m-F16", "m"), ("m.Q4_1", "m"), ("m-Q8_0-tuned", "m-Q8_0-tuned"), ("Q8_0", "Q8_0"), ("m", "m")]
)
def test_new_files_do_not_repeat_the_sources_quantization(name: str, stem: str) -> None:
    assert output_stem(name) == stem
