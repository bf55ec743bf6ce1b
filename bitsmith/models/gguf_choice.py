"""Chooses one model among the GGUF files of a repository or folder, as llama.cpp does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bitsmith.containers.gguf.split import split_name, split_parts
from bitsmith.errors import FileError

PREFERRED = ("Q4_K_M", "Q8_0")  # taken in this order if the user names no quantization; else the first file
_PROJECTORS = ("mmproj", "imatrix")  # in any case: files beside a model
_DRAFTS = ("mtp-", "eagle3-", "dflash-", "dspark-")  # as written: heads for speculative decoding
_QUANTIZATION = re.compile(
    r"(?:^|(?<=[-._/ ]))"
    r"(?:UD-)?(?:I?Q\d(?:_(?:\d|K|S|M|L|XL|XS|XXS|NL))*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)"
    r"(?=$|[-._/ ])",
    re.IGNORECASE,
)
_LISTED = 40


@dataclass(frozen=True)
class GgufModel:
    """One model: a GGUF file, or all files of a split set.

    first: path of its first file
    parts: paths of all its files, in order; also of those that are missing
    size: bytes of the files that are there
    missing: paths of the files that are not there
    """

    first: str
    parts: tuple[str, ...]
    size: int
    missing: tuple[str, ...] = ()

    @property
    def tag(self) -> str | None:
        """The quantization in its name, in upper case: "Q4_K_M"; None if there is none."""
        return quantization_in(self.first)


def quantization_in(path: str) -> str | None:
    """The last quantization in a file's path, in upper case; None if there is none."""
    found = _QUANTIZATION.findall(without_ending(path))
    return found[-1].upper() if found else None


def without_quantization(stem: str) -> str:
    """A file's name without its ending and the quantization: "m.Q4_K_M" and "m-Q4_K_M-00001-of-00002" give "m"."""
    name = without_ending(stem)
    matches = list(_QUANTIZATION.finditer(name))
    if not matches or matches[-1].end() != len(name):
        return name
    return name[: matches[-1].start()].rstrip("-._ ") or name


def without_ending(path: str) -> str:
    """The path without ".gguf" and without the number of a split file."""
    parts = split_parts(path if path.endswith(".gguf") else f"{path}.gguf")
    return parts[0] if parts else path.removesuffix(".gguf")


def models_among(files: Mapping[str, int]) -> list[GgufModel]:
    """The models among files, in order of their names.

    files: size in bytes by path; files that are not GGUF, and those beside a model and names with
        control characters are left out
    """
    found: dict[str, GgufModel] = {}
    for path in sorted(files):
        name = path.rsplit("/", 1)[-1]
        if not name.lower().endswith(".gguf") or _is_beside(name) or not path.isprintable():
            continue
        split = split_parts(path)
        parts = (path,) if split is None else tuple(split_name(split[0], n + 1, split[2]) for n in range(split[2]))
        size = sum(files.get(part, 0) for part in parts)
        found.setdefault(parts[0], GgufModel(parts[0], parts, size, tuple(p for p in parts if p not in files)))
    return list(found.values())


def _is_beside(name: str) -> bool:
    """Whether a GGUF file is no model of its own (llama.cpp's gguf_filename_is_model)."""
    return any(part in name.lower() for part in _PROJECTORS) or any(part in name for part in _DRAFTS)


def choose(models: Sequence[GgufModel], tag: str | None, *, where: str) -> GgufModel:
    """The model with the quantization `tag`, in any case. Without a tag: one of PREFERRED, else the first.

    models: at least one
    where: name of the repository, for errors
    Raises FileError, with the tags that exist, if there is no such quantization.
    """
    if tag is None:
        preferred = (_find(models, each) for each in PREFERRED)
        return next((model for model in preferred if model is not None), models[0])
    found = _find(models, tag)
    if found is None:
        raise FileError(f"{where} has no quantization {tag!r}; it has {', '.join(names_of(models))}.")
    return found


def _find(models: Sequence[GgufModel], tag: str) -> GgufModel | None:
    """The first model with exactly this quantization, else the first whose name holds the tag as a whole word."""
    word = re.compile(rf"(?:^|[-./ ]){re.escape(tag)}(?=$|[-./ ])", re.IGNORECASE)
    exact = (model for model in models if (model.tag or "").lower() == tag.lower())
    held = (model for model in models if word.search(without_ending(model.first)))
    return next(exact, None) or next(held, None)


def names_of(models: Sequence[GgufModel]) -> list[str]:
    """What may follow the colon for each model: its quantization, or its file where that is missing or not unique."""
    return [short_name(model, models) for model in models[:_LISTED]] + (
        [f"{len(models) - _LISTED} more"] if len(models) > _LISTED else []
    )


def short_name(model: GgufModel, models: Sequence[GgufModel]) -> str:
    """The shortest name after the colon that gives this model and no other."""
    tag = model.tag
    return tag if tag is not None and _find(models, tag) is model else model.first
