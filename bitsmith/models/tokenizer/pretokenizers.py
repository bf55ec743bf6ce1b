"""Table of pre-tokenizers: how a text is cut into words before byte-level BPE merges, by llama.cpp's names.

The regular expressions are applied one after the other. Each cuts every piece of the text into its matches and the
pieces between them. The expressions are those of llama.cpp (llama-vocab.cpp, build 11434), in Oniguruma's syntax. Most
are the same in the models' own files; `written` holds those that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitsmith.errors import UnsupportedError

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_OTHER}|{_SPACES}"
_DIGIT, _DIGITS, _THREE = r"\p{N}", r"\p{N}+", "[0-9][0-9][0-9]"
_THREES_FROM_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_LINES = r"[^\n]+|[\n]+"
_NEWLINE = r"[\r\n]"
_CJK = "[一-龥ࠀ-一가-퟿]+"
_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_ASCII_MARK = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_V3_WORD = rf"{_ASCII_MARK}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
_DEEPSEEK3 = rf"{_V3_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_SPARK = rf"{_V3_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
_LATIN = (
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ"
    "\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_LATIN_MARK = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BLOOM_WRITTEN = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"


def _cased(first: str, second: str, ending: str, rest: str) -> str:
    """An expression for words with capital letters first, then small letters (the rule of GPT-4o and Tekken)."""
    lead = r"[^\r\n\p{L}\p{N}]?"
    return f"{lead}{first}*{second}+{ending}|{lead}{first}+{second}*{ending}|{rest}"


_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_LOWER, _NOT_UPPER = r"((?=[\p{L}])([^a-z]))", r"((?=[\p{L}])([^A-Z]))"
_SLASH = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = _cased(_NOT_LOWER, _NOT_UPPER, "", rf"\p{{N}}|{_SLASH}")
_TEKKEN_WRITTEN = _cased(_UPPER, _LOWER, "", rf"\p{{N}}|{_SLASH}")
_GPT4O = _cased(_NOT_LOWER, _NOT_UPPER, _CONTRACTIONS + "?", rf"\p{{N}}{{1,3}}|{_SLASH}")
_GPT4O_WRITTEN = _cased(_UPPER, _LOWER, _CONTRACTIONS + "?", rf"\p{{N}}{{1,3}}|{_SLASH}")
# llama.cpp reads every case class as "any letter" in the following two
_LETTER_MARK = r"[\p{L}\p{M}]"
_AYA = _cased(_LETTER_MARK, _LETTER_MARK, _CONTRACTIONS + "?", rf"\p{{N}}{{1,3}}|{_SLASH}")
_YOUTU = _cased(_LETTER_MARK, _LETTER_MARK, _CONTRACTIONS + "?", rf"\p{{N}}|{_SLASH}")
_YOUTU_WRITTEN = _cased(_UPPER, _LOWER, _CONTRACTIONS + "?", rf"\p{{N}}|{_SLASH}")
_YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"
_BAILING = rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORD}|\p{{N}}|{_OTHER}|\s*[\r\n]|\s+(?!\S)|\s+"
_BAILING_WRITTEN = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_SEED = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_RUNS_OF_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s{1}"
_JAIS2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|\s*[\r\n]+|{_RUNS_OF_SPACES}"
_MINICPM5 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}+|{_OTHER}|{_SPACES}"
_UFAKZEKA = rf"{_WORD}|\p{{N}}|{_OTHER}|{_SPACES}"
_AFMOE_SCRIPTS = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut a text.

    name: name that is written to `tokenizer.ggml.pre`
    splits: regular expressions, applied in order; matches are isolated
    ignore_merges: True if a word that is a token becomes that token, without merges
    aliases: llama.cpp's other names for it
    add_bos: llama.cpp's default if a file does not say
    written: other forms of `splits` in the models' own files; if llama.cpp differs from the model's tokenizer on some
        texts, the first form is the model's
    """

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False
    aliases: tuple[str, ...] = ()
    add_bos: bool = False
    written: tuple[tuple[str, ...], ...] = ()


PRETOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        "gpt-2",
        (_GPT2,),
        aliases=(
            *(
                "mpt",
                "olmo",
                "jais",
                "trillion",
                "granite-docling",
                "phi-2",
                "gigachat",
                "a.x-4.0",
                "mellum",
                "exaone4",
            ),
            *("modern-bert", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
        ),
    ),
    PreTokenizer(
        "llama-bpe",
        (_LLAMA3,),
        ignore_merges=True,
        aliases=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        add_bos=True,
    ),
    PreTokenizer("dbrx", (_LLAMA3,), aliases=("smaug-bpe", "chatglm-bpe")),
    PreTokenizer("glm4", (_LLAMA3,), ignore_merges=True, aliases=("glm5",)),
    PreTokenizer(
        "qwen2",
        (_QWEN2,),
        aliases=(*("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"),),
    ),
    PreTokenizer("qwen35", (_QWEN35,)),
    PreTokenizer(
        "starcoder",
        (_DIGIT, _GPT2),
        aliases=("refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer(
        "falcon",
        (_PUNCTUATION, _GPT2, _THREE),
        written=((_PUNCTUATION, _GPT2, _DIGITS, _THREE),),
    ),
    PreTokenizer("default", (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, _DIGITS, _THREE)),
    PreTokenizer(
        "deepseek-llm",
        (_NEWLINE, _LATIN, _LATIN_MARK, r"\s+\z", _CJK, _DIGITS),
        written=(
            (_NEWLINE, _LATIN, _LATIN_MARK, r"\s+$", _CJK, _DIGIT),
            (_NEWLINE, _LATIN, _LATIN_MARK, r"\s+$", _CJK, _DIGITS),
        ),
    ),
    PreTokenizer("deepseek-coder", (_NEWLINE, r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT)),
    PreTokenizer("deepseek-v3", (r"\p{N}{1,3}", _KANA, _DEEPSEEK3), aliases=("hunyuan-dense", "joyai-llm", "hy_v4")),
    PreTokenizer("spark2_5", (r"\p{N}{1,3}", _KANA, _SPARK, _DIGIT)),
    PreTokenizer("tekken", (_TEKKEN,), ignore_merges=True, add_bos=True, written=((_TEKKEN_WRITTEN,),)),
    PreTokenizer(
        "gpt-4o", (_GPT4O,), aliases=("llama4", "kanana2", "talkie", "minimax-m2"), written=((_GPT4O_WRITTEN,),)
    ),
    PreTokenizer(
        "tiny_aya",
        (_THREES_FROM_RIGHT, _AYA),
        aliases=("cohere2moe",),
        written=((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O_WRITTEN),),
    ),
    PreTokenizer("youtu", (_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True, written=((_YOUTU_SCRIPTS, _YOUTU_WRITTEN),)),
    PreTokenizer("bloom", (_BLOOM,), aliases=("poro-chat", "gpt3-finnish"), written=((_BLOOM_WRITTEN,),)),
    PreTokenizer("viking", (_BLOOM, _DIGIT), written=((_BLOOM_WRITTEN, _DIGIT),)),
    PreTokenizer(
        "superbpe",
        (_DIGITS, "(?=([0-9]{3})+(?![0-9]))"),
        written=((_DIGITS, r"(?=(\d{3})+(?!\d))"),),
    ),
    PreTokenizer("bailingmoe", (_BAILING,), aliases=("bailingmoe2", "llada-moe"), written=((_BAILING_WRITTEN,),)),
    PreTokenizer("seed-coder", (_SEED,)),
    PreTokenizer("exaone-moe", (_EXAONE_MOE,)),
    PreTokenizer("jais-2", (_JAIS2,)),
    PreTokenizer("minicpm5", (r"\p{N}{1,3}", _MINICPM5), ignore_merges=True),
    PreTokenizer("ufakzeka", (_UFAKZEKA,)),
    PreTokenizer("laguna", (_LINES, _QWEN2)),
    PreTokenizer("afmoe", (_THREES_FROM_RIGHT, _AFMOE_SCRIPTS, _DEEPSEEK3)),
)

BY_NAME: dict[str, PreTokenizer] = {name: row for row in PRETOKENIZERS for name in (row.name, *row.aliases)}


def known_names() -> str:
    """The names of all pre-tokenizers, for messages."""
    return ", ".join(sorted(BY_NAME))


def pretokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer with this name. Raises UnsupportedError for an unknown name, with the known names."""
    if name not in BY_NAME:
        raise UnsupportedError(
            f"the pre-tokenizer {name!r} is unknown; known: {known_names()}; choose one that cuts words the same way "
            "with --pre"
        )
    return BY_NAME[name]


def fingerprint(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The splits of the `pre_tokenizer` in a tokenizer.json, in the form of this table.

    None if it has a step that the table cannot express, or if it is not byte-level.
    """
    steps = _steps(pre_tokenizer)
    splits: list[str] = []
    in_bytes = False
    for position, step in enumerate(steps):
        if step.get("type") == "ByteLevel" and not step.get("add_prefix_space", True) and not in_bytes:
            in_bytes = True
            if step.get("use_regex", True):
                splits.append(_GPT2)
            elif position != len(steps) - 1:
                return None
            continue
        split = _split(step)
        if split is None:
            return None
        splits.append(split)
    return tuple(splits) if in_bytes else None


def matching(splits: tuple[str, ...]) -> list[PreTokenizer]:
    """The rows that cut a text with these splits, in the table's order."""
    return [row for row in PRETOKENIZERS if splits == row.splits or splits in row.written]


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if not pre_tokenizer:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return [inner for step in pre_tokenizer.get("pretokenizers", []) for inner in _steps(step)]
    return [pre_tokenizer]


def _split(step: Mapping[str, Any]) -> str | None:
    kind, behavior = step.get("type"), step.get("behavior")
    if kind == "Digits":
        return _DIGIT if step.get("individual_digits") else _DIGITS
    if kind == "Punctuation" and behavior == "Contiguous":
        return _PUNCTUATION
    if kind != "Split" or not (behavior == "Isolated" or (behavior == "Removed" and step.get("invert"))):
        return None
    pattern = step.get("pattern", {}).get("Regex")
    return spelled(pattern) if isinstance(pattern, str) else None


def spelled(pattern: str) -> str:
    """One form for equal expressions: escapes for line ends, letters in both cases for (?i:...)."""
    for found, same in (
        ("\r", r"\r"),
        ("\n", r"\n"),
        ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS),
        ("(?i:[sdmt]|ll|ve|re)", "(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"),
    ):
        pattern = pattern.replace(found, same)
    return pattern
