"""What every command is made of: options in groups, and options generated from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

import click

from bitsmith.system import options

F = TypeVar("F", bound=Callable[..., Any])
GROUPS = (  # in the order of the help
    *(
        "Arguments",
        "Options",
        "Data",
        "Candidates",
        "Measurement",
        "Output",
        "Cache",
        "Budget",
        "Method",
        "Types",
        "Calibration",
    ),
    *("Sampling", "Training", "Source", "Machine", "Workers", "Help"),
)
EVERYWHERE = {  # options of all commands, and their help
    "--debug": "Show the traceback of an error.",
    "--log-level LEVEL": "Write a log to standard error: debug, info, warning or error.",
}
_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


class Option(click.Option):
    """A click option that belongs to a group of the help."""

    def __init__(self, *args: Any, group: str = "Options", **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.group = group


class Argument(click.Argument):
    """A click argument with a line in the help."""

    def __init__(self, *args: Any, help: str, **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.line = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """The argument's name and its help."""
        return self.human_readable_name, self.line


class Command(click.Command):
    """A command whose help shows its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section for each group that has options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_group(parameter), []).append(record)
        sections.setdefault("Help", []).extend(EVERYWHERE.items())
        for group in sorted(sections, key=GROUPS.index):
            with formatter.section(group):
                formatter.write_dl(sections[group], col_max=26)


def _group(parameter: click.Parameter) -> str:
    if isinstance(parameter, Argument):
        return "Arguments"
    return parameter.group if isinstance(parameter, Option) else "Help"


def command(name: str) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function; its docstring is the help."""
    return click.command(name, cls=Command, context_settings={"help_option_names": ["-h", "--help"]})


def model_argument(help: str, *, required: bool = True) -> Callable[[F], F]:
    """The argument MODEL: a name or a file, so a shell completes files."""
    return click.argument("model", cls=Argument, type=click.Path(), help=help, required=required)


def model_argument_or_option(help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The argument MODEL, which may also be given as -m or --model, as llama.cpp's users write it."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def called(model: str | None, named: str | None, **words: Any) -> None:
            if (model is None) == (named is None):
                two = f"Two models are named, {model} and {named}; name one."
                raise click.UsageError(
                    "Missing argument 'MODEL' (or -m MODEL)." if model is None else two, click.get_current_context()
                )
            function(model=named if model is None else model, **words)

        result: Callable[..., None] = called
        other = option("-m", "--model", "named", type=click.Path(), metavar="MODEL", help="The same as MODEL.")
        argument = click.argument("model", cls=Argument, type=click.Path(), required=False, help=help)
        return argument(other(result))

    return decorate


def option(
    *flags: str, type: type[Any] | click.ParamType[Any] = str, help: str, metavar: str | None = None, **attrs: Any
) -> Callable[[F], F]:
    """A click option; its default is shown, unless it is None. Takes click's own words too, and `group`."""
    if metavar is None and not isinstance(type, click.ParamType):
        metavar = _METAVARS[type]
    return click.option(*flags, cls=Option, type=type, help=help, metavar=metavar, show_default=True, **attrs)


def flag(*flags: str, help: str, **attrs: Any) -> Callable[[F], F]:
    """A click option without a value."""
    return click.option(*flags, cls=Option, is_flag=True, help=help, **attrs)


def config_options(config: type[Any], name: str = "config") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command all options of a configuration; its function gets them as one value, called `name`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        listed = list(options.options_of(config))

        @wraps(function)
        def called(**words: Any) -> None:
            given = {each.name: words.pop(each.name) for each in listed}
            defaults = {each.name: each.default for each in listed}
            chosen = {each: defaults[each] if value == () else value for each, value in given.items()}
            function(**{name: config(**chosen)}, **words)

        result: Callable[..., None] = called
        for each in reversed(listed):
            result = _generated(each)(result)
        return result

    return decorate


def some_options(
    config: type[Any], names: Sequence[str], name: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command some options of a configuration; its function gets those that differ from their defaults as a
    dict, called `name`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        listed = [each for each in options.options_of(config) if each.name in names]

        @wraps(function)
        def called(**words: Any) -> None:
            given = {each.name: words.pop(each.name) for each in listed}
            defaults = {each.name: each.default for each in listed}
            changed = {each: value for each, value in given.items() if value not in ((), defaults[each])}
            function(**{name: changed}, **words)

        result: Callable[..., None] = called
        for each in reversed(listed):
            result = _generated(each)(result)
        return result

    return decorate


def _generated(each: options.Option) -> Callable[[F], F]:
    """The click option of a configuration's option."""
    value = _value_type(each.hint)
    declared = [each.name, *each.flags]
    if value is bool:
        return flag(*declared, default=each.default, help=each.help, group=each.group)
    multiple = any(get_origin(kind) is Sequence for kind in (each.hint, *get_args(each.hint)))
    given: dict[str, Any] = {"required": True} if each.required else {"default": None if multiple else each.default}
    return option(
        *declared,
        type=click.Path(path_type=Path) if value is Path else value,
        help=each.help,
        metavar=each.metavar or _METAVARS[value],
        multiple=multiple,
        group=each.group,
        **given,
    )


def _value_type(hint: Any) -> type[Any]:
    """bool, int, float, str or Path: the type of one value of a field; a path is also given as a string."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType] or [hint]
    if any(get_origin(kind) is Sequence for kind in kinds):
        return str
    value: type[Any] = Path if Path in kinds else kinds[0]
    return value
