"""Finds the special tokens of a Hugging Face folder, and whether encoding adds start and end tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from bitsmith.models.tokenizer.hf_files import TokenizerFiles, text_of
from bitsmith.models.tokenizer.vocabulary import TokenType, Vocabulary, end_ids_by_text

_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# transformers' classes that build their post-processor from add_bos_token and add_eos_token
_CONFIGURED = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "SeedOssTokenizer")


def with_special(vocabulary: Vocabulary, files: TokenizerFiles) -> Vocabulary:
    """The vocabulary with special ids, end ids, add_bos and add_eos, and chat templates.

    Ids come from the texts in the tokenizer's configuration, else from config.json and generation_config.json. A
    generation ends at every id in `eos_token_id`, and at the tokens where llama.cpp stops because of their text.
    """
    ids = {text: token for token, text in enumerate(vocabulary.tokens)}
    first, last = _post_processed(files.tokenizer.get("post_processor"))
    special = dict(vocabulary.special)
    for role in _ROLES:
        text = text_of(files.config.get(f"{role}_token"))
        if text in ids:
            special[role] = ids[text]
        elif role not in special:
            listed = _listed(files, role, len(vocabulary.tokens))
            if listed:
                special[role] = listed[0]
    if "bos" not in special and first in ids:
        special["bos"] = ids[first]
    if "eos" not in special and last in ids:
        special["eos"] = ids[last]
    ends = _listed(files, "eos", len(vocabulary.tokens))
    by_text = {i for i in end_ids_by_text(vocabulary.tokens) if vocabulary.types[i] == TokenType.CONTROL}
    add_bos, add_eos = _added_around(vocabulary, files, special, (first, last))
    return replace(
        vocabulary,
        special=special,
        end_ids=frozenset({*ends, *by_text, *([special["eos"]] if "eos" in special else [])}),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=files.template,
        chat_templates=files.templates,
    )


def _listed(files: TokenizerFiles, role: str, size: int) -> list[int]:
    """Ids that config.json and generation_config.json give to a role, in order."""
    key = f"{role}_token_id"
    inner = files.model.get("text_config")
    sources: Iterable[Mapping[str, Any]] = (files.model, inner if isinstance(inner, Mapping) else {}, files.generation)
    found: dict[int, None] = {}  # a set in order; such a list in a file can be long
    for source in sources:
        value = source.get(key)
        listed = value if isinstance(value, list) else [value]
        found |= dict.fromkeys(token for token in listed if isinstance(token, int) and 0 <= token < size)
    return list(found)


def _post_processed(processor: Any) -> tuple[str | None, str | None]:
    """Texts of the special tokens that tokenizer.json's post-processor adds before and after a text."""
    if not isinstance(processor, Mapping):
        return None, None
    for step in processor.get("processors", [processor]):
        if step.get("type") == "TemplateProcessing":
            single = [next(iter(entry.items())) for entry in step.get("single", [])]
            names = [body.get("id") if kind == "SpecialToken" else None for kind, body in single]
            if None in names:
                middle = names.index(None)
                return (names[middle - 1] if middle else None), (names[-1] if len(names) > middle + 1 else None)
    return None, None


def _added_around(
    vocabulary: Vocabulary,
    files: TokenizerFiles,
    special: Mapping[str, int],
    around: tuple[str | None, str | None],
) -> tuple[bool, bool]:
    """Whether encoding adds the start token, and whether it adds the end token."""
    name = str(files.config.get("tokenizer_class", ""))
    configured = name.removesuffix("Fast") in _CONFIGURED
    processed = bool(files.tokenizer.get("post_processor"))
    flags = []
    for role, text, usual in (("bos", around[0], True), ("eos", around[1], False)):
        set_to = files.config.get(f"add_{role}_token")
        if isinstance(set_to, bool) and (configured or not processed):
            flag = set_to
        elif processed:
            flag = text is not None and role in special and text == vocabulary.tokens[special[role]]
        else:
            flag = usual and vocabulary.model == "llama"
        flag = flag or (role == "bos" and vocabulary.model == "gemma4")  # as llama.cpp's converter and loader
        flags.append(flag and role in special)
    return flags[0], flags[1]
