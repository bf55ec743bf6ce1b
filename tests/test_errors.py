"""Messages name options in the caller's language: keywords in the library, flags on the command line."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

import click
import pytest

import bitsmith
from bitsmith import api
from bitsmith.cli.main import COMMANDS, _Commands
from bitsmith.errors import BitsmithError, FileError, UsageError, Words, in_flags, in_python, keyword, quoted
from bitsmith.runtime.generate import Sampling
from tests.cli.command import Command

PACKAGE = Path(bitsmith.__file__).parent
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
_OWN = {"--plot"}  # of the command line alone, and so are their messages
_PIP = {"--force-reinstall", "--no-deps", "--no-cache-dir"}


@pytest.mark.parametrize(
    ("written", "flags", "python"),
    [
        ("--threads=4: expected 5.", "--threads 4: expected 5.", "threads=4: expected 5."),
        ("give --force to replace it, or another --out.",) * 2 + ("give force=True to replace it, or another out=.",),
        ("--kernel=torch, please", "--kernel torch, please", 'kernel="torch", please'),
        ("(--asym) and --sym", "(--asym) and --sym", "(symmetric=False) and symmetric=True"),
        ("use --rule='^a b$=f16'.", "use --rule '^a b$=f16'.", 'use rules=["^a b$=f16"].'),
        ("--calibration=o/n:a.txt: no", "--calibration o/n:a.txt: no", 'calibration="o/n:a.txt": no'),
        ("--cache=q8_0; --rank=-1", "--cache q8_0; --rank -1", 'cache_type="q8_0"; adapter_rank=-1'),
        ("see `bitsmith inspect --verify`",) * 3,
        ("a/--force and x--out stay",) * 3,
    ],
)
def test_both_wordings(written: str, flags: str, python: str) -> None:
    assert in_flags(written) == flags
    assert in_python(written) == python
    error = UsageError(written)
    assert (str(error), in_flags(error.message)) == (python, flags)
    words = Words(written)
    assert (str(words), words, in_flags(words), in_python(words)) == (python, python, flags, words)
    assert copy.copy(words) == words


@pytest.mark.parametrize("value", ["plain", "with space", "it's", 'say "x"', "a:b", "ends.", "c\\d"])
def test_values_keep_their_characters(value: str) -> None:
    found = in_python(f"--out={quoted(value)}: no")
    assert ast.literal_eval(found.removeprefix("out=").removesuffix(": no").rstrip(".")) == value.rstrip(".")


def test_an_error_with_its_place_keeps_both_wordings() -> None:
    error = FileError("give --force").at("file.txt")
    assert isinstance(error, FileError)
    assert (str(error), error.message) == ("file.txt: give force=True", "file.txt: give --force")


def _messages(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Line and text of each string but docstrings and helps, and whether a value in braces follows it."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option":
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = node.values
            for part, after in zip(parts, [*parts[1:], None], strict=True):
                if isinstance(part, ast.Constant) and id(part) not in skipped:
                    yield part.lineno, str(part.value), isinstance(after, ast.FormattedValue)
                    skipped.add(id(part))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value, False


def _written() -> Iterator[tuple[str, str, bool]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] not in ("cli", "errors.py"):
            for line, text, more in _messages(ast.parse(path.read_text(encoding="utf-8"))):
                yield f"{name}:{line}", text, more


def test_every_flag_in_a_message_is_a_keyword_of_the_library() -> None:
    """Messages with a flag that the library does not have, or with a value that is not bound by "="."""
    known = {word for name in api.__all__ for word in signature(getattr(bitsmith, name)).parameters}
    known |= set(signature(Sampling).parameters) | {"max_tokens", "prompt", "lookup"}
    wrong = []
    for where, text, more in _written():
        plain = re.sub(r"`[^`]*`", "", text)
        flags = [flag for flag in _FLAG.findall(plain) if flag not in _OWN | _PIP and "nvidia-smi" not in text]
        wrong += [f"{where}: {flag}" for flag in flags if keyword(flag) not in known and "=name," not in plain]
        if more and re.search(r"--[a-z][a-z-]* $", plain):
            wrong.append(f"{where}: write {plain[-30:]!r} with =")
        wrong += [f"{where}: {found}" for found in re.findall(r"--[a-z-]+ (?:'|[0-9])\S*", plain)]
    assert wrong == []


def test_errors_are_quoted_by_their_message() -> None:
    """`{error}` of a BitsmithError in a message would fix its wording; `.at` and `.message` keep both."""
    wrong = []
    names = {each.__name__ for each in (BitsmithError, *BitsmithError.__subclasses__())}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            caught = ast.unparse(node.type) if isinstance(node, ast.ExceptHandler) and node.type else ""
            if caught not in names:
                continue
            raised = [ast.unparse(inner) for inner in ast.walk(node) if isinstance(inner, ast.Raise)]
            wrong += [f"{path.name}: {each}" for each in raised if re.search(r"\{error\}|str\(error\)", each)]
    assert wrong == []


def test_the_keyword_of_every_flag_is_one_of_the_library() -> None:
    """Each flag of a command that the library has too is rendered as that function's keyword."""
    functions = {"eval": "evaluate", "plan": "plan", "bench": "bench", "quantize": "quantize", "imatrix": "imatrix"}
    group = _Commands("bitsmith")
    for name, function in functions.items():
        found = group.get_command(click.Context(group), name)
        assert found is not None
        assert name in COMMANDS
        known = set(signature(getattr(bitsmith, function)).parameters)
        if name == "plan":  # --fit shows what `quantize` would choose with the same options
            known |= set(signature(bitsmith.quantize).parameters)
        missing = {
            flag
            for parameter in found.params
            if isinstance(parameter, click.Option)
            for flag in (*parameter.opts, *parameter.secondary_opts)
            if flag.startswith("--") and keyword(flag) not in known
        }
        usual = {  # --fit of plan is not in the library, nor are the options that go with it
            "--json",
            "--quiet",
            "--debug",
            "--log-level",
            "--plot",
            "--list-devices",
            "--list-models",
            "--explain",
            "--fit",
            *(f"--{each}" for each in ("method", "effort", "rule", "keep", "group-size", "sym", "asym", "seed")),
            *("--calibration", "--calibration-tokens", "--calibration-context", "--calibration-all-experts"),
            *("--quantize", "--workers", "--threads", "--link"),  # of plan, see `pipeline.spread_plan`
        }
        assert missing <= usual | {"--device"}, name


def test_a_second_run_is_told_how_to_replace(tiny: Path, tmp_path: Path, bitsmith_command: Command) -> None:
    out = tmp_path / "made.gguf"
    bitsmith.quantize(tiny, to="q8_0", out=out)
    with pytest.raises(UsageError, match="give force=True to replace it, or choose another out="):
        bitsmith.quantize(tiny, to="q8_0", out=out)
    done = bitsmith_command("quantize", tiny, "--to", "q8_0", "--out", out)
    assert done.code == 2
    assert "give --force to replace it, or choose another --out." in " ".join(done.err.split())
