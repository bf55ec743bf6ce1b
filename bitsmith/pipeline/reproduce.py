"""From the recipe in a file's manifest to the command that makes the file again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from bitsmith.calibration.sources import SELF, own_text
from bitsmith.recipe.recipe import QUANTIZE
from bitsmith.reference.texts import built_in_name
from bitsmith.texts.sources import DEFAULT

_VALUES = {  # key of a recipe -> flag with a value
    "to": "--to",
    "method": "--method",
    "effort": "--effort",
    "pre": "--pre",
    "group_size": "--group-size",
    "device": "--device",
    "max_shard_bytes": "--max-shard-size",
    "model_name": "--name",
}
_MOST_STEPS = 100  # commands that made one file after the other
_FLAGS = {"pure": "--pure", "requantize": "--requantize"}
_LISTS = {"rules": "--rule", "keep": "--keep"}


def commands_of(recipe: Mapping[str, Any]) -> list[str]:
    """The commands that made a file, the first one first: a converted file keeps the recipe of its source."""
    found: list[str] = []
    step: Any = recipe
    while isinstance(step, Mapping) and len(found) < _MOST_STEPS:
        found.append(command_of(step))
        step = step.get("source_recipe")
    return found[::-1]


def command_of(recipe: Mapping[str, Any]) -> str:
    """The command with all options that decided the bytes, for a shell.

    The model and a calibration text are named without their folders, as the recipe names them.
    """
    source = str(recipe.get("source") or "MODEL")
    command = str(recipe.get("command") or QUANTIZE)
    words = ["bitsmith", command, source]
    merged = recipe.get("merged")
    if isinstance(merged, Mapping):
        words = ["bitsmith", "merge", str(merged.get("base")), str(merged.get("adapter"))]
    training = recipe.get("training")
    if isinstance(training, Mapping):
        words[1:2] = ["tune", "qat"]
        for key in ("train", "steps", "batch"):
            words += [f"--{key}", str(training.get(key))]
        words += ["--start", str(training["start"])] if training.get("start") else []
    values = {key: recipe[key] for key in _VALUES if recipe.get(key) is not None}
    if isinstance(training, Mapping) and training.get("start"):
        values = {key: value for key, value in values.items() if key not in ("method", "effort")}
    if command != QUANTIZE and str(values.get("to", "")).endswith("/same"):
        values.pop("to")
    if values.get("method") == "nearest" and not recipe.get("calibration"):
        values.pop("method")  # what happens without any option
    for key, value in values.items():
        words += [_VALUES[key], str(value)]
    words += [flag for key, flag in _FLAGS.items() if recipe.get(key) is True]
    for key, flag in _LISTS.items():
        given = recipe.get(key)
        words += [word for each in (given if isinstance(given, list) else []) for word in (flag, str(each))]
    if isinstance(recipe.get("symmetric"), bool):
        words.append("--sym" if recipe["symmetric"] else "--asym")
    calibration = recipe.get("calibration")
    return shlex.join([*words, *(_calibration(calibration, source) if isinstance(calibration, dict) else [])])


def _calibration(record: Mapping[str, Any], source: str) -> list[str]:
    name = str(record.get("source"))
    known = {built_in_name(): DEFAULT, own_text(source): SELF}
    words = ["--calibration", known.get(name, name)]
    if record.get("seed") is None:  # an importance file
        return words
    words += ["--calibration-tokens", str(record.get("tokens")), "--calibration-context", str(record.get("context"))]
    words += ["--seed", str(record.get("seed"))]
    return [*words, *(["--calibration-all-experts"] if record.get("all_experts") is True else [])]
