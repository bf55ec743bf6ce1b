"""Makes a tokenizer from the `tokenizer.*` keys of a GGUF file, as in llama.cpp (llama-vocab.cpp, build 11434)."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer.pipeline import looks_far_ahead
from bitsmith.models.tokenizer.pretokenizers import pretokenizer
from bitsmith.models.tokenizer.vocabulary import END_TEXTS, TokenType, Vocabulary, end_ids_by_text

# role -> key; GGUF spells "seperator" this way
SPECIAL_KEYS: dict[str, str] = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "fim_pre": "tokenizer.ggml.fim_pre_token_id",
    "fim_suf": "tokenizer.ggml.fim_suf_token_id",
    "fim_mid": "tokenizer.ggml.fim_mid_token_id",
    "fim_pad": "tokenizer.ggml.fim_pad_token_id",
    "fim_rep": "tokenizer.ggml.fim_rep_token_id",
    "fim_sep": "tokenizer.ggml.fim_sep_token_id",
}
END_IDS_KEY = "tokenizer.ggml.eos_token_ids"
TEMPLATE_KEY = "tokenizer.chat_template"

# Ids for missing keys, with the texts that these tokens must have. llama.cpp looks at no text, and takes token 11 for
# both ends of a byte-level BPE: in most vocabularies that is "(", at which no text ends.
_DEFAULTS: dict[str, dict[str, tuple[int, str]]] = {
    "gpt2": {},
    "gemma4": {},
    "llama": {"bos": (1, "<s>"), "eos": (2, "</s>"), "unk": (0, "<unk>")},
}
LINES = r"[^\n]+|[\n]+"  # how llama.cpp cuts texts of gemma4
_ALWAYS_SHOWN = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))
_MOST_MERGE_WORK = 100_000_000  # characters to compare; a vocabulary of 256,000 tokens needs some 20 million
_ENDS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


def vocabulary_from_gguf(metadata: Mapping[str, Any], *, pre: str | None = None) -> Vocabulary:
    """The vocabulary of a GGUF file.

    metadata: plain Python or numpy values by key
    pre: name of a pre-tokenizer in place of the file's `tokenizer.ggml.pre`

    Raises FileError for keys that are missing or contradict each other, UnsupportedError for a tokenizer that is
    neither byte-level BPE nor SentencePiece BPE, and for an unknown pre-tokenizer.
    """
    model = str(metadata.get("tokenizer.ggml.model", ""))
    if model not in _DEFAULTS:
        raise UnsupportedError(
            f"the file's tokenizer is {model or 'missing'!r} (tokenizer.ggml.model); bitsmith reads 'gpt2' (byte-level "
            "BPE), 'llama' (SentencePiece BPE) and 'gemma4'"
        )
    tokens = _named(_strings(metadata, "tokenizer.ggml.tokens"))
    types = _numbers(metadata, "tokenizer.ggml.token_type", TokenType.NORMAL, len(tokens))
    scores = _numbers(metadata, "tokenizer.ggml.scores", 0.0, len(tokens))
    merges = [] if model == "llama" else _strings(metadata, "tokenizer.ggml.merges")
    name = pre or str(metadata.get("tokenizer.ggml.pre") or "default")
    row = pretokenizer(name) if model == "gpt2" else None
    special = _special_ids(metadata, model, tokens)
    listed = {int(i) for i in _vector(metadata.get(END_IDS_KEY, []), END_IDS_KEY)}
    listed |= {special[role] for role in _ENDS if role in special}
    vocabulary = Vocabulary(
        model=model,
        tokens=tuple(tokens),
        types=_as_llama_cpp(tokens, types.astype(np.int64).tolist()),
        scores=() if model == "gpt2" else tuple(float(score) for score in scores),
        merges=tuple(merges),
        pre=name if row else "default",
        special=special,
        end_ids=end_ids_by_text(tokens) | {i for i in listed if 0 <= i < len(tokens)},
        add_bos=model == "gemma4" or bool(metadata.get("tokenizer.ggml.add_bos_token", row.add_bos if row else True)),
        add_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        add_space_prefix=model == "llama" and bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
        chat_template=str(metadata[TEMPLATE_KEY]) if TEMPLATE_KEY in metadata else None,
        chat_templates={
            key.removeprefix(TEMPLATE_KEY + "."): str(text)
            for key, text in metadata.items()
            if key.startswith(TEMPLATE_KEY + ".")
        },
    )
    for role, flag in (("bos", vocabulary.add_bos), ("eos", vocabulary.add_eos)):
        if flag and role not in special:
            raise FileError(
                f"tokenizer.ggml.add_{role}_token is set, but the file names no {role} token; convert the model again"
            )
    return vocabulary


def to_tokenizers(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """An encoder that gives the same ids as llama.cpp, without start and end tokens.

    Control tokens in a text become their ids. Set `encode_special_tokens` on the result to read them as plain text,
    like llama.cpp with `parse_special` false. Two differences are known, only on artificial vocabularies. If two
    special tokens overlap in a text, llama.cpp takes the longer one; this encoder takes the left one. If two tokens
    have the same score, llama.cpp merges the leftmost pair; this encoder merges the token with the lower id.
    """
    ids = {text: token for token, text in enumerate(vocabulary.tokens)}
    if vocabulary.model == "gpt2":
        row = pretokenizer(vocabulary.pre)
        model = models.BPE(ids, _pairs(vocabulary, ids), ignore_merges=row.ignore_merges)
        tokenizer = tokenizers.Tokenizer(model)
        splits = [pre_tokenizers.Split(tokenizers.Regex(split), "isolated") for split in row.splits]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
    else:
        unknown = vocabulary.token("unk") or None
        scored = vocabulary.model == "llama"
        merges = _merges_by_score(vocabulary, ids) if scored else _pairs(vocabulary, ids)
        model = models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        tokenizer = tokenizers.Tokenizer(model)
        if not scored:
            tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(LINES), "isolated")
        escape = normalizers.Replace(" ", "▁")
        prefix = [normalizers.Prepend("▁")] if vocabulary.add_space_prefix else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, escape])
        strip = [decoders.Strip(" ", 1, 0)] if vocabulary.add_space_prefix else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    tokenizer.add_special_tokens(_added(vocabulary, (TokenType.CONTROL, TokenType.UNKNOWN), special=True))
    tokenizer.add_tokens(_added(vocabulary, (TokenType.USER_DEFINED,), special=False))
    return tokenizer


def encodes_in_linear_time(vocabulary: Vocabulary) -> bool:
    """Whether encoding with the vocabulary takes linear time on any text."""
    return vocabulary.model != "gpt2" or not any(map(looks_far_ahead, pretokenizer(vocabulary.pre).splits))


def tokenizer_json(vocabulary: Vocabulary) -> str:
    """The text of a `tokenizer.json` (Hugging Face tokenizers) that encodes and decodes like the vocabulary."""
    return _with_start_and_end(to_tokenizers(vocabulary).to_str(), vocabulary)


def _added(vocabulary: Vocabulary, kinds: tuple[int, ...], *, special: bool) -> list[AddedToken]:
    return [
        AddedToken(text, normalized=False, special=special)
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind in kinds
    ]


def _with_start_and_end(text: str, vocabulary: Vocabulary) -> str:
    """The tokenizer.json with a post-processor, so that other programs add the start and end tokens too."""
    start = [vocabulary.special["bos"]] if vocabulary.add_bos else []
    end = [vocabulary.special["eos"]] if vocabulary.add_eos else []
    if not start and not end:
        return text
    whole = json.loads(text)

    def template(sequences: Sequence[str]) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = []
        for number, name in enumerate(sequences):
            result += [{"SpecialToken": {"id": vocabulary.tokens[i], "type_id": number}} for i in start]
            result.append({"Sequence": {"id": name, "type_id": number}})
            result += [{"SpecialToken": {"id": vocabulary.tokens[i], "type_id": number}} for i in end]
        return result

    named = {
        vocabulary.tokens[i]: {"id": vocabulary.tokens[i], "ids": [i], "tokens": [vocabulary.tokens[i]]}
        for i in (*start, *end)
    }
    whole["post_processor"] = {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("AB"),
        "special_tokens": named,
    }
    return json.dumps(whole, ensure_ascii=False)


def _pairs(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges as pairs. Merges whose parts or result are not tokens are left out, since the library rejects them."""
    pairs = []
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        if not left:  # a token that begins with a space
            left, _, right = merge[1:].partition(" ")
            left = " " + left
        if left in ids and right in ids and left + right in ids:
            pairs.append((left, right))
    return pairs


def _merges_by_score(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that form a token, the highest score first. llama.cpp's SPM merges all such pairs."""
    order = sorted(range(len(vocabulary.tokens)), key=lambda i: (-vocabulary.scores[i], i))
    lengths = sorted({len(text) for text in vocabulary.tokens})
    known = frozenset(lengths)
    work = 0
    pairs = []
    for token in order:
        text = vocabulary.tokens[token]
        cuts = [cut for cut in lengths[: bisect_left(lengths, len(text))] if len(text) - cut in known]
        work += len(lengths) + len(text) * len(cuts)
        if work > _MOST_MERGE_WORK:
            raise FileError(
                f"the vocabulary has tokens that are too long to find how they merge (token {token} has "
                f"{len(text):,} characters); real ones have at most some hundreds: take the tokenizer from its source"
            )
        pairs += [(text[:cut], text[cut:]) for cut in cuts if text[:cut] in ids and text[cut:] in ids]
    return pairs


def _as_llama_cpp(tokens: Sequence[str], types: list[int]) -> tuple[int, ...]:
    """The types of the tokens. Like llama.cpp, it changes the type of tokens with certain texts."""
    known = _ALWAYS_SHOWN | END_TEXTS
    for token in [token for token, text in enumerate(tokens) if text in known]:
        if tokens[token] in _ALWAYS_SHOWN:
            types[token] = int(TokenType.USER_DEFINED)
        elif types[token] == TokenType.NORMAL:
            types[token] = int(TokenType.CONTROL)
    return tuple(types)


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    if key not in metadata:
        raise FileError(f"the file has a tokenizer, but the key {key} is missing; convert the model again")
    texts = metadata[key]
    if not isinstance(texts, list | tuple) or not set(map(type, texts)) <= {str}:
        raise FileError(f"the key {key}: expected an array of strings; convert the model again")
    return list(texts)


def _numbers(metadata: Mapping[str, Any], key: str, usual: float, size: int) -> np.ndarray:
    """The first `size` entries; if the key is missing, `usual` for all."""
    values = _vector(metadata.get(key, [usual] * size), key)
    if len(values) < size:
        raise FileError(f"the key {key} has {len(values)} entries for {size} tokens; convert the model again")
    return values[:size]


def _vector(value: Any, key: str) -> np.ndarray:
    numbers = np.asarray(value)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iuf") or not np.isfinite(numbers).all():
        raise FileError(f"the key {key}: expected an array of finite numbers; convert the model again")
    return numbers


def _named(tokens: list[str]) -> list[str]:
    """The tokens. Empty ones get llama.cpp's names."""
    return [text or f"[EMPTY_{token}]" for token, text in enumerate(tokens)]


def _special_ids(metadata: Mapping[str, Any], model: str, tokens: Sequence[str]) -> dict[str, int]:
    """Ids by role. Ids beyond the vocabulary are ignored, as in llama.cpp; missing keys have `_DEFAULTS`."""
    special = {
        role: token for role, (token, text) in _DEFAULTS[model].items() if list(tokens[token : token + 1]) == [text]
    }
    for role, key in SPECIAL_KEYS.items():
        token = metadata.get(key)
        if token is not None and not isinstance(token, int | np.integer):
            raise FileError(f"the key {key}: expected the id of a token, found {token!r:.80}; convert the model again")
        if token is not None and 0 <= token < len(tokens):
            special[role] = int(token)
    return special
