"""ArchSpec: the families that bitsmith converts and runs, as its converter and decoder see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.families import FAMILIES, Decoder, Family

_WINDOWED: dict[str, Literal["always", "by_layer", "never"]] = {"all": "always", "by_field": "by_layer"}


@dataclass(frozen=True)
class ArchSpec:
    """One row of `FAMILIES` that has a decoder.

    name: config.json's "model_type", key of `FAMILIES` and `ModelConfig.arch`
    """

    name: str
    family: Family
    decoder: Decoder

    @property
    def gguf(self) -> str:
        """GGUF's general.architecture."""
        return self.family.gguf

    @property
    def permuted(self) -> bool:
        """See `Decoder`."""
        return self.decoder.permuted

    @property
    def qk_norm(self) -> bool:
        """Whether there is an RMSNorm over each head of q and k."""
        return self.family.qk_norm == "head"

    @property
    def always_qkv_bias(self) -> bool:
        """Whether q, k and v always have a bias."""
        return self.family.qkv_bias is True

    @property
    def windowed(self) -> Literal["always", "by_layer", "never"]:
        """The value is "always" if every layer has the window, "by_layer" if the configuration chooses the layers."""
        return _WINDOWED.get(self.family.window, "never")


ARCHITECTURES: dict[str, ArchSpec] = {
    name: ArchSpec(name, family, family.decoder) for name, family in FAMILIES.items() if family.decoder is not None
}


def spec_of_hf(classes: Sequence[str], model_type: str | None, origin: str) -> ArchSpec:
    """The family of a Hugging Face config, by its class names; without class names, by its model_type.

    origin: name of the file, for errors
    Raises UnsupportedError for an unknown family, with the known ones.
    """
    for spec in ARCHITECTURES.values():
        if any(name in spec.decoder.hf_classes for name in classes) or (not classes and model_type == spec.name):
            return spec
    found = ", ".join(classes) or f"model_type {model_type!r}"
    known = ", ".join(name for spec in ARCHITECTURES.values() for name in spec.decoder.hf_classes[:1])
    raise UnsupportedError(
        f"{origin}: unknown architecture {found}; known are {known}. Other models can be "
        "written as native files only, for instance --to=native/int8."
    )


def spec_of_gguf(architecture: str, origin: str) -> ArchSpec:
    """The family of a GGUF file, by general.architecture ("llama" is also Mistral).

    origin: name of the file, for errors
    Raises UnsupportedError for an unknown family, with the known ones.
    """
    for spec in ARCHITECTURES.values():
        if spec.gguf == architecture:
            return spec
    known = ", ".join(dict.fromkeys(spec.gguf for spec in ARCHITECTURES.values()))
    raise UnsupportedError(f"{origin}: unknown general.architecture {architecture!r}; known are {known}.")
