"""Reads and merges the tokenizer files of a Hugging Face folder, without interpreting them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitsmith.containers.hf_folder import CONFIG, read_object, read_text
from bitsmith.errors import FileError
from bitsmith.models.tokenizer.shape import check_shape

_DIGITS = 10  # of an id


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of the files; empty mappings for missing files.

    tokenizer: tokenizer.json
    config: special_tokens_map.json, with tokenizer_config.json over it
    model: config.json
    generation: generation_config.json
    added: (id, text, special) of every added token, ordered by id
    template: the default chat template
    templates: further chat templates by name
    """

    folder: Path
    tokenizer: Mapping[str, Any]
    config: Mapping[str, Any]
    model: Mapping[str, Any]
    generation: Mapping[str, Any]
    added: tuple[tuple[int, str, bool], ...]
    template: str | None
    templates: Mapping[str, str]


def read_files(folder: Path) -> TokenizerFiles:
    """Read all tokenizer files. Raises FileError for a damaged file."""
    tokenizer = _read(folder / "tokenizer.json")
    check_shape(tokenizer, folder / "tokenizer.json")
    given = {k: v for k, v in _read(folder / "tokenizer_config.json").items() if v is not None}
    config = {**_read(folder / "special_tokens_map.json"), **given}
    template, templates = _templates(folder, config)
    return TokenizerFiles(
        folder=folder,
        tokenizer=tokenizer,
        config=config,
        model=_read(folder / CONFIG),
        generation=_read(folder / "generation_config.json"),
        added=_added(folder, tokenizer, config),
        template=template,
        templates=templates,
    )


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no such file. Raises FileError if it holds no JSON object."""
    return read_object(path) if path.exists() else {}


def text_of(token: Any) -> str | None:
    """The text of a token that is a string or an object with `content`; None for anything else."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def looks_special(text: str) -> bool:
    """Whether an added token is special by its text.

    Some models do not mark their special tokens. llama.cpp's converter uses the same texts.
    """
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _added(folder: Path, tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[tuple[int, str, bool], ...]:
    """Added tokens of added_tokens.json, tokenizer_config.json and tokenizer.json. The later file wins."""
    found: dict[int, tuple[str, bool]] = {}
    entries: list[tuple[Any, Any, Any]] = [
        (token, text, False) for text, token in _read(folder / "added_tokens.json").items()
    ]
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise FileError(f"{folder}: expected added_tokens_decoder to be an object, found {decoder!r:.60}")
    listed = [*((token, entry) for token, entry in decoder.items())]
    listed += [(entry.get("id"), entry) for entry in tokenizer.get("added_tokens") or [] if isinstance(entry, Mapping)]
    entries += [
        (token, text_of(entry), bool(entry.get("special"))) for token, entry in listed if isinstance(entry, Mapping)
    ]
    for token, text, special in entries:
        if not isinstance(text, str) or not str(token).isdecimal() or len(str(token)) > _DIGITS:
            raise FileError(
                f"{folder}: expected added tokens with an id and a text, found id {token!r:.60}, text {text!r:.60}"
            )
        found[int(token)] = (text, special or looks_special(text))
    return tuple((token, *found[token]) for token in sorted(found))


def _templates(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The default chat template, and others by name.

    As in transformers, chat_template.jinja wins over tokenizer_config.json, which wins over chat_template.json.
    """
    named: dict[str, str] = {}
    inner = config.get("chat_template") or _read(folder / "chat_template.json").get("chat_template")
    if isinstance(inner, str):
        named["default"] = inner
    elif isinstance(inner, Mapping):
        named.update({str(name): text for name, text in inner.items() if isinstance(text, str)})
    elif isinstance(inner, list):
        for entry in inner:
            if isinstance(entry, Mapping) and isinstance(entry.get("template"), str):
                named[str(entry.get("name"))] = entry["template"]
    alone = folder / "chat_template.jinja"
    if alone.exists():
        named["default"] = read_text(alone)
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        named[path.stem] = read_text(path, folder)
    return named.pop("default", None), named
