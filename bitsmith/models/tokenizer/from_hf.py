"""Makes a Vocabulary from the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import models

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.tokenizer.hf_files import TokenizerFiles, read_files, text_of
from bitsmith.models.tokenizer.pretokenizers import BY_NAME, fingerprint, known_names, matching, pretokenizer
from bitsmith.models.tokenizer.sentencepiece import read_model
from bitsmith.models.tokenizer.special import with_special
from bitsmith.models.tokenizer.vocabulary import MOST_TOKENS, PAD_SCORE, TokenType, Vocabulary, pad_token

_ADDED_SCORE = -1000.0
_GEMMA4_SHOWN = frozenset(  # that llama.cpp's converter marks, so that readers of calls see them
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
)


def read_tokenizer(folder: Path, *, pre: str | None = None, vocab_size: int, fallback: str = "llama") -> Vocabulary:
    """The vocabulary of a Hugging Face folder, padded to the rows of the embedding.

    pre: llama.cpp's name of the pre-tokenizer; None to find it from tokenizer.json
    vocab_size: number of rows of the embedding (`vocab_size` in config.json)
    fallback: `Vocabulary.model` of a BPE with byte fallback: "llama" or "gemma4"

    Raises FileError for files that are missing, damaged or hold more tokens than `vocab_size`; UnsupportedError for an
    algorithm other than BPE and for a pre-tokenizer that llama.cpp does not have.
    """
    files = read_files(folder)
    vocabulary = _vocabulary(files, vocab_size, fallback)
    if vocabulary.model == "gpt2":
        vocabulary = replace(vocabulary, pre=_pre_name(files, pre, vocabulary))
    elif pre not in (None, "default"):
        raise UnsupportedError(f"{folder}: --pre={pre} is for byte-level BPE, but this tokenizer is SentencePiece BPE")
    return with_special(vocabulary, files).padded(vocab_size)


def unpadded(files: TokenizerFiles) -> Vocabulary:
    """The vocabulary without padding and without the name of the pre-tokenizer. Decoding needs neither."""
    return with_special(_vocabulary(files, None, "llama"), files)


def _vocabulary(files: TokenizerFiles, vocab_size: int | None, fallback: str) -> Vocabulary:
    model = files.tokenizer.get("model", {})
    if not files.tokenizer:
        return _sentencepiece(files, vocab_size)
    if not isinstance(model, dict):
        raise FileError(f"{files.folder / 'tokenizer.json'}: expected model to be an object, found {model!r:.60}")
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        raise UnsupportedError(
            f"{files.folder / 'tokenizer.json'}: a tokenizer of type {kind}; bitsmith reads only BPE (byte-level, or "
            "SentencePiece with byte fallback), not WordPiece, Unigram or word-level"
        )
    for option in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise UnsupportedError(
                f"{files.folder / 'tokenizer.json'}: BPE with {option} {model[option]!r}, which GGUF cannot express"
            )
    if _is_byte_level(files.tokenizer):
        return _byte_level(files, vocab_size)
    if not model.get("byte_fallback"):
        raise UnsupportedError(
            f"{files.folder / 'tokenizer.json'}: this BPE is not byte-level and has no byte fallback; llama.cpp cannot "
            "encode with it"
        )
    if fallback == "gemma4":
        return _gemma4(files, vocab_size)
    if (files.folder / "tokenizer.model").is_file():
        return _sentencepiece(files, vocab_size)
    return _scored_by_merges(files, vocab_size)


def _is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    steps = [*_flat(tokenizer.get("pre_tokenizer"), "pretokenizers"), *_flat(tokenizer.get("decoder"), "decoders")]
    return any(step.get("type") == "ByteLevel" for step in steps)


def _byte_level(files: TokenizerFiles, vocab_size: int | None) -> Vocabulary:
    by_id = {token: (text, int(TokenType.NORMAL), 0.0) for text, token in _ids(files).items()}
    for token, text, special in files.added:
        by_id[token] = (text, int(TokenType.CONTROL if special else TokenType.USER_DEFINED), 0.0)
    tokens, types, _ = _columns(files, by_id, vocab_size)
    merges = tuple(f"{left} {right}" for left, right in _merges(files))
    return Vocabulary("gpt2", tokens, types, merges=merges)


def _sentencepiece(files: TokenizerFiles, vocab_size: int | None) -> Vocabulary:
    path = files.folder / "tokenizer.model"
    if not path.is_file():
        raise FileError(
            f"{files.folder}: expected tokenizer.json or tokenizer.model, found neither; save the tokenizer with "
            "transformers' save_pretrained to get a tokenizer.json"
        )
    model = read_model(path)
    by_id = dict(enumerate(zip(map(_user_text, model.pieces, model.types), model.types, model.scores, strict=True)))
    if files.tokenizer:
        prefix = _adds_space_prefix(files.tokenizer)
    else:
        prefix = bool(files.config.get("add_prefix_space", model.add_dummy_prefix))
    vocabulary = _with_added(files, by_id, vocab_size)
    return replace(vocabulary, add_space_prefix=prefix, special=model.special)


def _scored_by_merges(files: TokenizerFiles, vocab_size: int | None) -> Vocabulary:
    """SentencePiece BPE without its model. The score of a token is minus the rank of the first merge that makes it.

    llama.cpp merges any two neighbours that form a token, the highest score first. A file converted from a
    SentencePiece model lists all such pairs in that order, so the ids are the same.
    """
    scores: dict[str, float] = {}
    merges = _merges(files)
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    unknown = files.tokenizer["model"].get("unk_token")
    by_id = {}
    for text, token in _ids(files).items():
        kind = TokenType.NORMAL
        if text == unknown:
            kind = TokenType.UNKNOWN
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = TokenType.BYTE
        by_id[token] = (text, int(kind), scores.get(text, -float(len(merges))))
    vocabulary = _with_added(files, by_id, vocab_size)
    special = {"unk": vocabulary.tokens.index(unknown)} if unknown in vocabulary.tokens else {}
    return replace(vocabulary, add_space_prefix=_adds_space_prefix(files.tokenizer), special=special)


def _gemma4(files: TokenizerFiles, vocab_size: int | None) -> Vocabulary:
    """Gemma 4's, with the types that llama.cpp's converter gives: control tokens are those that the files name."""
    named, inner = _named_special(files.config), _ids(files)
    by_id = {}
    for text, token in (inner | {text: token for token, text, _ in files.added}).items():
        kind = TokenType.NORMAL if text in inner else TokenType.USER_DEFINED
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kind = TokenType.BYTE
        elif text in _GEMMA4_SHOWN:
            kind = TokenType.USER_DEFINED
        elif text in named:
            kind = TokenType.CONTROL
        by_id[token] = (text, int(kind), _ADDED_SCORE)
    tokens, types, scores = _columns(files, by_id, vocab_size)
    merges = tuple(f"{left} {right}" for left, right in _merges(files))
    return Vocabulary("gemma4", tokens, types, scores=scores, merges=merges, add_space_prefix=False)


def _named_special(config: Mapping[str, Any]) -> set[str]:
    """Texts of the special tokens that tokenizer_config.json names."""
    found = {text_of(value) for name, value in config.items() if name.endswith("_token")}
    for name in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
        listed = config.get(name) or ()
        found |= {text_of(value) for value in (listed.values() if isinstance(listed, Mapping) else listed)}
    return {text for text in found if text is not None}


def _with_added(files: TokenizerFiles, by_id: dict[int, tuple[str, int, float]], vocab_size: int | None) -> Vocabulary:
    for token, text, special in files.added:
        kind = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
        if token in by_id and by_id[token][1] in (TokenType.UNKNOWN, TokenType.BYTE):
            kind = by_id[token][1]
        by_id[token] = (_user_text(text, kind), kind, _ADDED_SCORE)
    tokens, types, scores = _columns(files, by_id, vocab_size)
    return Vocabulary("llama", tokens, types, scores=scores)


def _user_text(text: str, kind: int) -> str:
    """The text of a token. User-defined tokens have spaces, since they are searched before spaces become "▁"."""
    return text.replace("▁", " ") if kind == TokenType.USER_DEFINED else text


def _columns(
    files: TokenizerFiles, by_id: Mapping[int, tuple[str, int, float]], vocab_size: int | None
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[float, ...]]:
    """Texts, types and scores by id. Ids without a token become padding."""
    last = max(by_id, default=-1)
    limit = min(max(len(by_id) * 2 + 65536 if vocab_size is None else vocab_size, 0), MOST_TOKENS)
    if last >= limit or min(by_id, default=0) < 0:
        raise FileError(
            f"{files.folder}: token {by_id[last][0]!r} has id {last}, but the model has an embedding for {limit} "
            "tokens only; take the tokenizer that belongs to these weights, or resize the embedding"
        )
    rows = [by_id.get(i, (pad_token(i), int(TokenType.UNUSED), PAD_SCORE)) for i in range(last + 1)]
    return tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows)


def _ids(files: TokenizerFiles) -> dict[str, int]:
    vocab = files.tokenizer["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(isinstance(token, int) for token in vocab.values()):
        raise FileError(f"{files.folder / 'tokenizer.json'}: expected model.vocab to map tokens to ids")
    return vocab


def _merges(files: TokenizerFiles) -> list[tuple[str, str]]:
    """Merges as pairs, from either spelling ("a b" or ["a", "b"])."""
    pairs = []
    for entry in files.tokenizer["model"].get("merges", []):
        parts: Sequence[Any] = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise FileError(f"{files.folder / 'tokenizer.json'}: expected pairs in model.merges, found {entry!r}")
        pairs.append((parts[0], parts[1]))
    return pairs


def _adds_space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    for step in _flat(tokenizer.get("normalizer"), "normalizers"):
        if step.get("type") == "Prepend":
            return True
    for step in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            return bool(
                step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"
            )
    return False


def _flat(step: Any, key: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(step, Mapping):
        return []
    return [inner for entry in step[key] for inner in _flat(entry, key)] if key in step else [step]


def _pre_name(files: TokenizerFiles, pre: str | None, vocabulary: Vocabulary) -> str:
    if pre is not None:
        pretokenizer(pre)
        return pre
    path = files.folder / "tokenizer.json"
    splits = fingerprint(files.tokenizer.get("pre_tokenizer"))
    normalizers = {step.get("type") for step in _flat(files.tokenizer.get("normalizer"), "normalizers")}
    rows = matching(splits) if splits and normalizers <= {"NFC"} else []
    if not rows:
        raise UnsupportedError(
            f"{path}: no pre-tokenizer of llama.cpp is known to cut words like this one "
            f"({files.tokenizer.get('pre_tokenizer')!r:.300}); known: {known_names()}; "
            "choose one that cuts words the same way with --pre"
        )
    ignores = bool(files.tokenizer["model"].get("ignore_merges", False))
    if "[gMASK]" in vocabulary.tokens and BY_NAME["glm4"] in rows:
        return "glm4" if ignores else "chatglm-bpe"
    same = [row for row in rows if row.ignore_merges == ignores]
    if same:
        return same[0].name
    unreachable = _unreachable(vocabulary)
    if unreachable:
        raise UnsupportedError(
            f"{path}: words are cut like in {rows[0].name}, but ignore_merges is {ignores}, and {len(unreachable)} "
            f"tokens depend on it (for instance {unreachable[0]!r}); choose a pre-tokenizer of llama.cpp with --pre"
        )
    return rows[0].name


def _unreachable(vocabulary: Vocabulary) -> list[str]:
    """Tokens that the merges do not form from the token's own text."""
    ids = {text: token for token, text in enumerate(vocabulary.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    bpe = models.BPE(ids, [pair for pair in merges if pair[0] in ids and pair[1] in ids and "".join(pair) in ids])
    normal = [text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == TokenType.NORMAL]
    return [text for text in normal if len(bpe.tokenize(text)) != 1]
