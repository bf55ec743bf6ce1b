"""Small tokenizers trained on the spot, in Hugging Face folders; texts that are hard to cut; vocab-only GGUF files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from bitsmith.containers.gguf.metadata_values import GgufArray, Value

HOSTILE = "\n".join(
    [
        "I've been 'told he's there, 'RE you sure? 'M not sure I'LL make it, 'D you like some tea? We'Ve a'lL, don't",
        "한국어 문장입니다. 日本語のテキスト、カタカナ。中文字符测试",
        "Ελληνικά κείμενο Русский текст עברית العربية हिन्दी ไทย ქართული",
        "🦙🚀👩‍👩‍👧‍👦🏳️‍🌈👍🏽 😶‍🌫️ é ñ a\u0308 o\u0328\u0301 Z̤͔ḁ̈l̤g̈o ﬁ ½ Ⅷ ² ٣ ४५ ３３３ 𝔘𝔫𝔦 𐐷",
        "   leading  two   three    four\ttab\t\ttabs \t mixed \u00a0nbsp\u2003em\u3000ideographic\u0085nel\u2028ls",
        "\n\n\n\r\n\r\n \n  \n\t\n x\r y \r\n\u000b\u000c",
        "0 12 345 6789 01234567890 3.14159 1,000,000 1e-9 0xDEADBEEF v2.0.1 (2024-05-17) x1y22z333",
        'def f(x: int) -> str:\n    """Doc."""\n    return {"a": [x**2]}  # ok!?\n\tif x != y && z || !w:',
        "a\u0000b\u0001c\u001b[0m\u007f\u200b\u200d\ufeff\ufffd\ue000\U000e0001 \U0010fffd",
        "<|endoftext|><|user|>hi<|user |><s></s><unk>[PAD0]<0x0A><|end<|endoftext|>|> <tool>x<tool> <to<tool>ol>",
        "HTTPServer XMLHttpRequest camelCase snake_case SHOUTING ÀÉÎ Straße İstanbul ǅ ʻokina O'Brien's O’Brien’s",
        "https://example.com/a/b?c=d&e=%20f#g user@host.org C:\\path\\file.txt $HOME ~ `code` **b** _it_ =====---",
        "a" * 70 + " " * 70 + "\n" * 20 + "!" * 70 + "1" * 70,
        " ",
    ]
)
PLAIN = "The object's value is 12 345 6789; don't print it   twice!\n\n\tif x >= 10: return None  # why?\r\nEND. "
SPECIAL = ("<|endoftext|>", "<|user|>")
USER_DEFINED = "<tool>"


def sample() -> str:
    """Text to train on: documentation, and the hostile text often enough to earn merges."""
    return "\n".join(list(topics.values())[:8])[:20_000] + HOSTILE * 2


def split(pattern: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    """A step that cuts by a regular expression."""
    return pre_tokenizers.Split(tokenizers.Regex(pattern), behavior, invert)


def byte_level(*, use_regex: bool) -> pre_tokenizers.PreTokenizer:
    """The step that ends every byte-level pre-tokenizer."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def train(
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    size: int = 900,
    ignore_merges: bool = False,
    normalizer: Any = None,
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer with two special tokens and one user-defined."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([sample()], trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(USER_DEFINED, normalized=False)])
    return tokenizer


def write_folder(
    folder: Path, tokenizer: str | None, *, config: Mapping[str, Any] | None = None, **files: Mapping[str, Any]
) -> Path:
    """A folder with tokenizer.json, tokenizer_config.json and further JSON files by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
    for stem, content in {"tokenizer_config": config or {}, **files}.items():
        (folder / f"{stem}.json").write_text(json.dumps(content), "utf-8")
    return folder


def edited(tokenizer: tokenizers.Tokenizer, **changes: Any) -> str:
    """Its tokenizer.json with top-level entries replaced."""
    return json.dumps({**json.loads(tokenizer.to_str()), **changes})


def plain(keys: Mapping[str, Value]) -> dict[str, Any]:
    """Values as a reader of the file sees them."""
    return {key: value.plain() for key, value in keys.items()}


def write_vocabulary(path: Path, keys: Mapping[str, Value]) -> Path:
    """A GGUF file with these keys and no tensors, written by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in keys.items():
        inner = value.value
        if isinstance(inner, GgufArray):
            items = inner.items.tolist() if isinstance(inner.items, np.ndarray) else list(inner.items)
            writer.add_key_value(key, items, gguf.GGUFValueType.ARRAY, sub_type=gguf.GGUFValueType(int(inner.item)))
        else:
            writer.add_key_value(key, inner, gguf.GGUFValueType(int(value.type)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
