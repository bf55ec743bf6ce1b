"""ArchSpec: the families that bitsmith converts and runs, as its converter and decoder see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.families import FAMILIES
from bitsmith.models.arch.family import Decoder, Family


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
        """Whether there is an RMSNorm of q and k."""
        return bool(self.family.qk_norm)

    @property
    def always_qkv_bias(self) -> bool:
        """Whether q, k and v always have a bias."""
        return self.family.qkv_bias is True


class _Architectures(Mapping[str, ArchSpec]):
    """The rows of `FAMILIES` that have a decoder, by name."""

    def __getitem__(self, name: str) -> ArchSpec:
        family = FAMILIES[name]
        if family.decoder is None:
            raise KeyError(name)
        return ArchSpec(name, family, family.decoder)

    def __iter__(self) -> Iterator[str]:
        return (name for name, family in FAMILIES.items() if family.decoder is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


ARCHITECTURES: Mapping[str, ArchSpec] = _Architectures()


def spec_of_hf(classes: Sequence[str], model_type: str | None, origin: str) -> ArchSpec:
    """The family of a Hugging Face config, by its class names; without class names, by its model_type.

    origin: name of the file, for errors
    Raises UnsupportedError for an unknown family, with the known ones.
    """
    for spec in ARCHITECTURES.values():
        if any(name in spec.decoder.hf_classes for name in classes) or (not classes and model_type == spec.name):
            return spec
    found = ", ".join(classes) or f"model_type {model_type!r}"
    raise UnsupportedError(
        f"{origin}: unknown architecture {found}; docs/sources.md lists the known families. Of others, bitsmith writes "
        "native, gptq, awq and compressed folders without calibration, for instance --to=native/int8; it quantizes any "
        "GGUF file of llama.cpp, so convert the model with llama.cpp first for --to=q4_k_m."
    )


def spec_of_gguf(architecture: str, origin: str, *, experts: bool = False, windowed: bool = False) -> ArchSpec:
    """The family of a GGUF file, by general.architecture. "llama" is also Mistral.

    origin: name of the file, for errors
    experts, windowed: whether the file has experts, and a window; families that share an architecture differ in them
    Raises UnsupportedError for an unknown family, with the known ones.
    """
    found = [spec for spec in ARCHITECTURES.values() if spec.gguf == architecture]
    alike = [spec for spec in found if (row := spec.decoder.experts) is not None and row.switch]  # with experts or not
    alike += [spec for spec in found if (spec.decoder.experts is not None) == experts and spec not in alike]
    if alike:
        return next((spec for spec in alike if windowed and spec.family.window in ("pattern", "alternating")), alike[0])
    known = ", ".join(dict.fromkeys(spec.gguf for spec in ARCHITECTURES.values()))
    what = f"{architecture!r} with experts" if found and experts else repr(architecture)
    raise UnsupportedError(
        f"{origin}: unknown general.architecture {what}; known are {known}. Files of others can be quantized to GGUF "
        "types and to native/..., without calibration, but not run here."
    )
