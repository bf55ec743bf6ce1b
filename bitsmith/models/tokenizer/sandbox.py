"""Jinja for templates that are not trusted: sandboxed, with bounds for steps, sizes and output.

jinja2's immutable sandbox keeps a template away from Python's internals and from changing its inputs. It does not stop
a template that loops for hours or doubles a string forty times. This environment does. It counts a step for every turn
of a loop, every call of a macro and every value in an operation, and it measures the size of inputs and results.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sized
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

LONGEST = 10_000_000  # largest size of a value or of the output, in characters and items
MOST_STEPS = 2_000_000
_UNBOUNDED = ("center", "ljust", "rjust", "zfill", "expandtabs", "format_map", "indent", "wordwrap", "translate")
_WIDE = re.compile(r"\d{4}|\*|\{[^{}]*\{")
_MOST_BITS = 10_000
_CONSTANT_TIME = ("length", "count", "first", "last", "default", "d")
_LAZY = ("map", "select", "reject", "selectattr", "rejectattr", "items")


class StoppedError(Exception):
    """The template refuses the conversation with raise_exception."""


class TooMuchError(Exception):
    """The template exceeds a bound."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training. Here it has no effect."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment for rendering one chat template once (see `bitsmith.models.tokenizer.chat`)."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[jinja2.ext.loopcontrols, GenerationTag],
            finalize=_finalized,
        )
        self.steps = 0
        self.filters = {name: self._weighed(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = self._weighed("tojson", to_json)
        self.globals.pop("lipsum", None)
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    def step(self, count: int = 1) -> None:
        """Count a turn of a loop, a call, or some values. Raises TooMuchError beyond MOST_STEPS."""
        self.steps += count
        if self.steps > MOST_STEPS:
            raise TooMuchError(f"takes more than {MOST_STEPS:,} steps")

    def turn(self) -> bool:
        """Count one turn of a loop or one call of a macro. Returns True, so that a loop's condition can include it."""
        self.step()
        return True

    def weigh(self, *values: Any) -> int:
        """Number of characters and items in the values, with nested ones. Raises TooMuchError beyond LONGEST."""
        total = 0
        stack = list(values)
        while stack:
            value = stack.pop()
            if isinstance(value, str | bytes):
                total += len(value)
            elif isinstance(value, int):
                if value.bit_length() > _MOST_BITS:
                    raise TooMuchError(f"makes a number of more than {_MOST_BITS:,} bits")
            elif isinstance(value, dict):
                stack.extend(value.keys())
                stack.extend(value.values())
            elif isinstance(value, list | tuple | set | frozenset):
                stack.extend(value)
            total += 1
            self.step()
            if total > LONGEST:
                raise TooMuchError(f"makes a value of more than {LONGEST:,} characters or items")
        return total

    def joined(self, *values: Any) -> str:
        """The operator `~`."""
        self.weigh(*values)
        return "".join(str(value) for value in values)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        self.weigh(left, right)
        if operator == "**":
            raise TooMuchError("uses the operator **")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
                    self._bounded(len(value) * max(times, 0))
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise TooMuchError("pads a text to more than 999 characters")
        result = super().call_binop(context, operator, left, right)
        self.weigh(result)
        return result

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if owner is self:
            return function(*args)
        if isinstance(owner, str | bytes):
            self._check(name, (owner, *args))
        args = self._listed(args)
        self.weigh(*args, *kwargs.values())
        result = super().call(context, function, *args, **kwargs)
        self.weigh(result)
        return result

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        """The syntax tree, with a step in every loop and macro, and a bounded call in place of `~`."""
        nodes = jinja2.nodes
        tree = super()._parse(source, name, filename)
        for found in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
            counted = nodes.Call(nodes.EnvironmentAttribute("turn"), [], [], None, None)
            if isinstance(found, nodes.For) and found.test is not None:
                found.test = nodes.And(counted, found.test).set_lineno(found.lineno)
            elif isinstance(found, nodes.For | nodes.Macro | nodes.CallBlock):
                found.body.insert(0, nodes.ExprStmt(counted).set_lineno(found.lineno))
        _replace_concatenations(tree)
        tree.set_environment(self)
        return tree

    def _weighed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def weighed(*args: Any, **kwargs: Any) -> Any:
            passed = 1 if hasattr(function, "jinja_pass_arg") else 0
            if name in _CONSTANT_TIME:
                return function(*args, **kwargs)
            given = self._listed(args[passed:])
            if name in _LAZY:
                self.step(sum(len(value) for value in given if isinstance(value, Sized)))
                return function(*args[:passed], *given, **kwargs)
            self._check(name, given)
            self.weigh(*given, *kwargs.values())
            result = function(*args[:passed], *given, **kwargs)
            self.weigh(result)
            return result

        return weighed

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`"...".format`. Raises TooMuchError if it pads to a large width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            self._check("format", (value.__self__,))
        return wrapped

    def _listed(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The values, with generators as lists. Each item counts as a step."""
        return tuple(
            [item for item in value if self.turn()] if isinstance(value, Iterator) else value for value in values
        )

    def _check(self, name: str, given: tuple[Any, ...]) -> None:
        """Raise TooMuchError for filters and methods whose result is much larger than their inputs."""
        if name in _UNBOUNDED and any(isinstance(value, int) and value > 999 for value in given[1:]):
            raise TooMuchError(f"calls {name} with a width of more than 999")
        if name in ("format", "__mod__") and given and _WIDE.search(str(given[0])):
            raise TooMuchError("pads a text to more than 999 characters")
        texts = [len(value) for value in given if isinstance(value, str | list | tuple)]
        if name in ("replace", "join", "translate") and len(texts) > 1:
            self._bounded(max(texts[0], 1) * max(texts[-1], 1) if name == "replace" else texts[0] * texts[1])

    def _bounded(self, size: int) -> None:
        if size > LONGEST:
            raise TooMuchError(f"makes a value of more than {LONGEST:,} characters or items")


def _replace_concatenations(node: jinja2.nodes.Node) -> None:
    """Replace every `a ~ b` below `node` by a call of `BoundedEnvironment.joined`."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, name, [_replaced(entry) for entry in value])
        else:
            setattr(node, name, _replaced(value))
    for child in node.iter_child_nodes():
        _replace_concatenations(child)


def _replaced(value: Any) -> Any:
    if not isinstance(value, jinja2.nodes.Concat):
        return value
    joined = jinja2.nodes.EnvironmentAttribute("joined")
    return jinja2.nodes.Call(joined, value.nodes, [], None, None).set_lineno(value.lineno)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson`: plain JSON, without escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_environment
def _finalized(environment: BoundedEnvironment, value: Any) -> Any:
    environment.weigh(value)
    return value


def _raise_exception(message: str) -> None:
    raise StoppedError(message)


def _strftime_now(form: str) -> str:
    if _WIDE.search(form):
        raise TooMuchError("pads a date to more than 999 characters")
    return datetime.now().strftime(form)
