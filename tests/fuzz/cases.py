"""One case: a damaged input, made from a number alone, and the command that gets it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitsmith.containers.gguf.reader import GgufSource
from tests.fuzz import mutate
from tests.gguf_files import Stored, write_gguf
from tests.models.tokenizer.spm import model_proto, small_model

TARGETS = ("q8_0", "q4_k_m", "native/int4", "native/nf4", "gptq/int4", "awq/int4", "compressed/w8a8", "f16")
_DAMAGED_JSON = (
    *("config.json", "config.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json"),
    *("generation_config.json", "special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"),
)


@dataclass(frozen=True)
class Case:
    """number: what the case is made from; words: the command; typed: standard input; damaged: the changed file"""

    number: int
    words: tuple[str, ...]
    typed: str
    damaged: Path


def make_case(number: int, seeds: Path, folder: Path) -> Case:
    """Write the damaged input of this number below `folder`, which is empty. The same number gives the same case."""
    rng = random.Random(number)
    kind = rng.choice(_KINDS)
    words, damaged = kind(rng, seeds, folder)
    return Case(number, tuple(words), rng.choice(["hi\n", "", "/reset\nhi\n", "<|user|>\n"]), damaged)


def commands(model: Path, folder: Path, target: str) -> list[list[str]]:
    """Every command that reads a model. Those that read more come twice. folder: for other files and outputs"""
    out, text, named = folder / "out", folder / "some.txt", str(model)
    text.write_text("Once upon a time there was a small model. " * 20)
    out.mkdir()
    given = str(out / "m.gguf" if "/" not in target else out)
    return [
        ["inspect", named],
        ["inspect", named, "--verify"],
        ["inspect", named, "--json"],
        ["plan", named, "--device", "rtx-4090", "--context", "128"],
        ["quantize", named, "--to", target, "-o", given, "--requantize", "--threads", "1", "--force"],
        ["quantize", named, "--to", target, "-o", given, "--requantize", "--dry-run"],
        ["eval", named, "--text", str(text), "--context", "32", "--max-windows", "1", "--threads", "1"],
        *[["run", named, "-p", "Once", "-n", "2", "--threads", "1"]] * 2,
        *[["chat", named, "-n", "2", "--threads", "1"]] * 2,
        ["bench", named, "--prompt", "4", "--gen", "2", "--repeat", "1", "--threads", "1"],
    ]


def _commands(rng: random.Random, model: Path, folder: Path) -> list[str]:
    return rng.choice(commands(model, folder, rng.choice(TARGETS)))


def _change(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _gguf(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    source = rng.choice(sorted((seeds / "gguf").iterdir()))
    path = folder / source.name
    shutil.copy(source, path)
    if rng.random() < 0.1:
        _change(path, lambda data: _without_tensors(data))
    else:
        header = _header_bytes(source)
        _change(path, lambda data: mutate.gguf_file(data, rng, header))
    return _commands(rng, path, folder), path


def _without_tensors(data: bytes) -> bytes:
    """The file with a count of no tensors."""
    return data[:8] + bytes(8) + data[16:]


def _header_bytes(path: Path) -> int:
    with GgufSource(path) as source:
        return source._parts[0].header.data_start


def _gguf_keys(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    """A sound file with other values of some keys."""
    found = rng.choice(sorted((seeds / "gguf").iterdir()))
    path = folder / found.name
    with GgufSource(found) as source:
        keys = dict(source.keys)
        for _ in range(rng.choice([1, 1, 2, 3])):
            name = rng.choice([*keys, "tokenizer.chat_template"])
            if rng.random() < 0.1:
                keys.pop(name, None)
            else:
                keys[name] = mutate.gguf_value(keys.get(name), rng)
        tensors = {
            name: Stored(info.layout, info.shape, source.packed(name).parts["data"])
            for name, info in source.tensors.items()
        }
    write_gguf(path, keys, tensors)
    return _commands(rng, path, folder), path


def _steps(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    """A tokenizer.json with hostile steps."""
    model = folder / "model"
    shutil.copytree(seeds / "folder" / "plain", model)
    path = model / "tokenizer.json"
    content = json.loads(path.read_bytes())
    split = {"type": "Split", "pattern": {"Regex": rng.choice(mutate.REGEXES)}, "behavior": "Isolated", "invert": False}
    double = {"type": "Replace", "pattern": {"String": rng.choice(["O", "", "e"])}, "content": "ee"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if rng.random() < 0.6:
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    else:
        content["normalizer"] = {"type": "Sequence", "normalizers": [double] * rng.choice([1, 3, 40])}
    path.write_bytes(mutate.dump(content))
    return _commands(rng, model, folder), path


def _split(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    for part in sorted((seeds / "split").iterdir()):
        shutil.copy(part, folder / part.name)
    path = rng.choice(sorted(folder.glob("*.gguf")))
    if rng.random() < 0.1:
        path.unlink()
    else:
        _change(path, lambda data: mutate.gguf_file(data, rng, min(len(data), 4000)))
    return _commands(rng, sorted(folder.glob("*.gguf"))[0], folder), path


def _model(rng: random.Random, seeds: Path, folder: Path) -> Path:
    source = rng.choice(sorted((seeds / "folder").iterdir()))
    shutil.copytree(source, folder / "model")
    return folder / "model"


def _weights(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    model = _model(rng, seeds, folder)
    path = rng.choice(sorted(model.glob("*.safetensors")))
    _change(path, lambda data: mutate.safetensors_file(data, rng))
    return _commands(rng, model, folder), path


def _json(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    model = _model(rng, seeds, folder)
    there = [name for name in _DAMAGED_JSON if (model / name).is_file()]
    path = model / rng.choice(there if rng.random() < 0.9 else _DAMAGED_JSON)
    if not path.exists():
        path.write_text(json.dumps({"a": 1, "b": {"content": "x"}}))
    if path.name == "config.json" and rng.random() < 0.3:
        _change(path, lambda data: _with_patterns(data, rng))
    else:
        _change(path, lambda data: mutate.json_file(data, rng))
    return _commands(rng, model, folder), path


def _with_patterns(data: bytes, rng: random.Random) -> bytes:
    """A configuration whose quantized modules are chosen by a pattern."""
    config = json.loads(data)
    quantization = config.setdefault("quantization_config", {"quant_method": "gptq", "bits": 4, "group_size": 128})
    pattern = rng.choice(mutate.REGEXES)
    quantization["dynamic"] = {rng.choice(["+:", "-:", ""]) + pattern: {"bits": rng.choice([4, 8, 0, "x"])}}
    for group in quantization.get("config_groups", {}).values():
        group["targets"] = ["re:" + pattern]
    return mutate.dump(config)


def _template(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    model = folder / "model"
    shutil.copytree(seeds / "folder" / "plain", model)
    path = model / "chat_template.jinja"
    text = path.read_bytes()
    path.write_bytes(mutate.flipped(text, rng) if rng.random() < 0.5 else rng.choice(mutate.TEMPLATES).encode())
    return ["chat", str(model), "-n", "2", "--threads", "1"], path


def _spm(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    model = folder / "model"
    shutil.copytree(seeds / "folder" / "spm", model)
    path = model / "tokenizer.model"
    if rng.random() < 0.3:
        pieces = small_model()
        text, score, kind = pieces[at := rng.randrange(len(pieces))]
        pieces[at] = rng.choice(
            [(rng.choice(mutate.TEXTS).replace("\ud800", "x"), score, kind), (text * 200_000, score, kind)]
        )
        path.write_bytes(model_proto(pieces))
    else:
        _change(path, lambda data: rng.choice([mutate.flipped, mutate.number_put, mutate.cut])(data, rng))
    return _commands(rng, model, folder), path


def _imatrix(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    source = rng.choice(sorted((seeds / "importance").iterdir()))
    path = folder / source.name
    shutil.copy(source, path)
    if path.suffix == ".gguf":
        _change(path, lambda data: mutate.gguf_file(data, rng, min(len(data), 2000)))
    else:
        _change(path, lambda data: rng.choice([mutate.flipped, mutate.number_put, mutate.cut])(data, rng))
    model, out = str(seeds / "folder" / "plain"), str(folder / "out.gguf")
    words = ["quantize", model, "--to", "q4_k_m", "-o", out, "--calibration", str(path), "--threads", "1"]
    return (words if rng.random() < 0.7 else ["inspect", str(path)]), path


def _text(rng: random.Random, seeds: Path, folder: Path) -> tuple[list[str], Path]:
    source = rng.choice(sorted((seeds / "texts").iterdir()))
    path = folder / source.name
    data = source.read_bytes()
    if source.suffix == ".jsonl" and rng.random() < 0.7:
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = mutate.json_file(lines[at], rng)
        path.write_bytes(b"\n".join(lines))
    else:
        path.write_bytes(rng.choice([mutate.flipped, mutate.cut])(data, rng))
    model = str(seeds / "folder" / "plain")
    if rng.random() < 0.6:
        words = ["eval", model, "--text", str(path), "--context", "32", "--max-windows", "1", "--threads", "1"]
    else:
        words = ["imatrix", model, "-o", str(folder / "out.dat"), "--calibration", str(path), "--threads", "1"]
        words += ["--calibration-tokens", "64", "--calibration-context", "32"]
    return words, path


_KINDS = (
    *(_gguf, _gguf, _gguf_keys, _gguf_keys, _split, _weights, _weights, _json, _json, _json),
    *(_template, _steps, _spm, _imatrix, _text),
)
