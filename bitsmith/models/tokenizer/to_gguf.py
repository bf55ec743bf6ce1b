"""Makes the `tokenizer.*` keys of a GGUF file, which llama.cpp, Ollama and LM Studio read."""

from __future__ import annotations

import re

from bitsmith.containers.gguf.metadata_values import Value, ValueType, array, boolean, string, u32
from bitsmith.models.tokenizer.from_gguf import END_IDS_KEY, SPECIAL_KEYS, TEMPLATE_KEY
from bitsmith.models.tokenizer.vocabulary import TokenType, Vocabulary, end_ids_by_text


def vocabulary_keys(vocabulary: Vocabulary) -> dict[str, Value]:
    """Typed values by key, in a fixed order (GGUF specification, section "Tokenizer").

    llama.cpp knows some end tokens by their text. Other end tokens beside "eos" become "eot" and "eom", if these are
    free. All end tokens are also listed in `tokenizer.ggml.eos_token_ids`, which Ollama reads.
    """
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": string(vocabulary.model),
        "tokenizer.ggml.pre": string(vocabulary.pre),
        "tokenizer.ggml.tokens": array(list(vocabulary.tokens), ValueType.STRING),
    }
    if vocabulary.model == "gemma4":
        del keys["tokenizer.ggml.pre"]  # llama.cpp knows it
    if vocabulary.model != "gpt2":
        keys["tokenizer.ggml.scores"] = array(list(vocabulary.scores), ValueType.FLOAT32)
    keys["tokenizer.ggml.token_type"] = array([int(kind) for kind in vocabulary.types], ValueType.INT32)
    if vocabulary.model != "llama":
        merges = [_merge(merge) for merge in vocabulary.merges]
        keys["tokenizer.ggml.merges"] = array(merges, ValueType.STRING)
    for role, token in _special_with_ends(vocabulary).items():
        keys[SPECIAL_KEYS[role]] = u32(token)
    if len(vocabulary.end_ids) > 1:
        keys[END_IDS_KEY] = array(sorted(vocabulary.end_ids), ValueType.INT32)
    keys["tokenizer.ggml.add_bos_token"] = boolean(vocabulary.add_bos)
    keys["tokenizer.ggml.add_eos_token"] = boolean(vocabulary.add_eos)
    if vocabulary.model != "gpt2":
        keys["tokenizer.ggml.add_space_prefix"] = boolean(vocabulary.add_space_prefix)
    if vocabulary.chat_template is not None:
        keys[TEMPLATE_KEY] = string(vocabulary.chat_template)
    if vocabulary.chat_templates:
        named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in sorted(vocabulary.chat_templates.items())}
        keys["tokenizer.chat_templates"] = array(list(named), ValueType.STRING)
        keys.update({f"{TEMPLATE_KEY}.{name}": string(text) for name, text in named.items()})
    return keys


def _merge(merge: str) -> str:
    """A merge with byte-level letters for further spaces, since readers split it at the first space after its start."""
    left, _, right = merge.partition(" ")
    return f"{left} {right.replace(' ', 'Ġ')}"


def _special_with_ends(vocabulary: Vocabulary) -> dict[str, int]:
    """Ids by role. There is always an "eos" if any token can take its place.

    Without the key, llama.cpp takes token 11 (byte-level BPE) or 2 (SentencePiece), perhaps an ordinary token. A model
    without any end token gets a token that it never generates.
    """
    special = {role: token for role, token in vocabulary.special.items() if role in SPECIAL_KEYS}
    known = end_ids_by_text(vocabulary.tokens) | set(special.values())
    free = [role for role in ("eos", "eot", "eom") if role not in special]
    special.update(zip(free, sorted(vocabulary.end_ids - known), strict=False))
    if "eos" not in special:
        unused = [token for token, kind in enumerate(vocabulary.types) if kind == TokenType.UNUSED]
        substitutes = [*sorted(vocabulary.end_ids), *unused[-1:]]
        if substitutes:
            special["eos"] = substitutes[0]
    return special
