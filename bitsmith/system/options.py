"""Options as fields of a dataclass: each field holds its default, its flags, its help line and its group.

The command line (`bitsmith.cli.command`) and the keywords of the library's functions are made from these fields.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from inspect import Parameter, Signature, signature
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from bitsmith.errors import UsageError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_KEY = "option"
_KINDS: dict[str, Any] = {  # what parts of annotations mean
    **{kind.__name__: kind for kind in (str, int, float, bool, Path)},
    **{"None": NoneType, "Sequence[str]": Sequence[str], "Sequence[str | Path]": Sequence[str | Path]},
}
REQUIRED: Any = MISSING  # as a default: the option must be given


@dataclass(frozen=True)
class Option:
    """One option, as a user sees it.

    name: name of the field, which is also the keyword of the library
    hint: the field's type, resolved
    annotation: the field's type as written in the source
    default: None if the program chooses
    flags: flags of the command line ("--out", "-o"); yes and no flags are one entry, "--sym/--asym"
    metavar: name of the value in the help; None: chosen by its type
    """

    name: str
    hint: Any
    annotation: str
    default: Any
    required: bool
    flags: tuple[str, ...]
    help: str
    group: str
    metavar: str | None


@dataclass(frozen=True)
class _Shown:
    flags: tuple[str, ...]
    help: str
    group: str
    metavar: str | None


def option(default: T, *flags: str, group: str, help: str, metavar: str | None = None) -> T:
    """A dataclass field that is an option. Without a default, `default` is REQUIRED.

    flags: short flags are added to `--field-name`; a long flag replaces it
    """
    shown = _Shown(flags, help, group, metavar)
    return field(default=default, metadata={_KEY: shown})


def options_of(config: type[Any]) -> Iterator[Option]:
    """Options of a dataclass: its own fields first, then those of its bases."""
    hints = get_type_hints(config)
    by_name = {each.name: each for each in fields(config)}
    for owner in config.__mro__:
        for name in vars(owner).get("__annotations__", {}):
            each = by_name.pop(name, None)
            if each is not None:
                yield _option(each, hints[name])


def _option(each: Field[Any], hint: Any) -> Option:
    shown: _Shown = each.metadata[_KEY]
    long = any(flag.startswith("--") for flag in shown.flags)
    flags = shown.flags if long else (f"--{each.name.replace('_', '-')}", *shown.flags)
    required = each.default is MISSING
    default = None if required else each.default
    return Option(each.name, hint, str(each.type), default, required, flags, shown.help, shown.group, shown.metavar)


def words_of(config: Any, *, without: Collection[str] = ()) -> list[str]:
    """The flags of a command line that give these options. without: names of fields to leave out"""
    words = []
    for each in options_of(type(config)):
        value = getattr(config, each.name)
        if each.name in without or value is None or value == each.default:
            continue
        flag = next(flag for flag in each.flags if flag.startswith("--"))
        if isinstance(value, bool):
            words.append(flag.split("/")[not value])
        else:
            words += [f"{flag}={one}" for one in (value if isinstance(value, list | tuple) else [value])]
    return words


def check_types(config: Any) -> None:
    """Raise UsageError for a value of a dataclass of options that has not the type of its field."""
    for each in options_of(type(config)):
        value = getattr(config, each.name)
        kinds = get_args(each.hint) if isinstance(each.hint, UnionType) else (each.hint,)
        if not any(_is_of(value, kind) for kind in kinds):
            raise UsageError(f"{each.name}: expected {_in_words(each.annotation)}, found {value!r:.40}.")


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument of a public function that has not the type of its annotation.

    given: arguments by name; names that are no parameters are skipped, and so are annotations of other kinds (models,
        callbacks)
    """
    for name, parameter in signature(function).parameters.items():
        annotation = str(parameter.annotation)
        kinds = [_KINDS.get(part) for part in _parts(annotation)]
        if name in given and None not in kinds and not any(_is_of(given[name], kind) for kind in kinds):
            raise UsageError(f"{name}: expected {_in_words(annotation)}, found {given[name]!r:.40}.")


def _is_of(value: Any, kind: Any) -> bool:
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if kind is str or kind is Path:
        return isinstance(value, kind)
    if get_origin(kind) is Sequence:
        each_of = get_args(get_args(kind)[0]) or get_args(kind)
        return isinstance(value, list | tuple) and all(isinstance(each, each_of) for each in value)
    return isinstance(value, kind)


def _in_words(annotation: str) -> str:
    words = {"Sequence[str]": "a list of strings", "str": "a string", "int": "a whole number", "bool": "True or False"}
    words |= {"Sequence[str | Path]": "a list of them", "Path": "a path", "float": "a number"}
    return " or ".join(words.get(part, part) for part in _parts(annotation))


def _parts(annotation: str) -> list[str]:
    """The alternatives of an annotation: "str | Sequence[str] | None" -> "str", "Sequence[str]", "None"."""
    return re.findall(r"\w+\[[^]]*\]|\w+", annotation)


def with_signature(function: F, config: type[Any]) -> F:
    """Give `function`, whose last parameter collects the options of `config`, a signature that lists them."""
    own = [each for each in signature(function).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    listed = [
        Parameter(
            each.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if each.required else each.default,
            annotation=each.annotation,
        )
        for each in options_of(config)
    ]
    vars(function)["__signature__"] = Signature([*own, *listed])
    return function


def check_words(function: str, config: type[Any], words: Collection[str], *, further: tuple[str, ...] = ()) -> None:
    """Raise TypeError, with Python's own words, for an unknown keyword or a missing required option.

    function: name of the function that the user called
    further: keywords of the function that are not options
    """
    known = [each.name for each in fields(config)]
    unknown = next((word for word in words if word not in known), None)
    if unknown is not None:
        from difflib import get_close_matches

        near = get_close_matches(unknown, [*known, *further], n=1)
        meant = f". Did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{function}() got an unexpected keyword argument {unknown!r}{meant}")
    missing = next((each.name for each in fields(config) if each.default is MISSING and each.name not in words), None)
    if missing is not None:
        raise TypeError(f"{function}() missing 1 required keyword-only argument: {missing!r}")
