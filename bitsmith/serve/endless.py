"""JSON schemas that only an endless value has the form of, such as an object that must hold itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

_Group = list[Any]  # schemas of which one must have a value that ends


def endless(schema: Any) -> bool:
    """Whether no value that ends has the form of a schema. False where that cannot be said.

    Marks schemas that have such a value, from the inside out, until nothing changes; work grows with the schema.
    """
    found: dict[int, Any] = {id(schema): schema}
    left: dict[int, int] = {}  # groups of a schema without a value that ends
    waiting: dict[int, list[tuple[int, int]]] = {}  # schema -> (schema, group) that one of its values is enough for
    met: set[tuple[int, int]] = set()
    todo, ready = [schema], []
    while todo:
        each = todo.pop()
        if isinstance(each, dict) and "$id" in each and each is not schema:
            return False  # references in it begin elsewhere
        groups = list(_groups(each, schema))
        left[id(each)] = len(groups)
        if not groups:
            ready.append(id(each))
        for number, group in enumerate(groups):
            for inner in group:
                waiting.setdefault(id(inner), []).append((id(each), number))
                if id(inner) not in found:
                    found[id(inner)] = inner
                    todo.append(inner)
    ended = set()
    while ready:
        name = ready.pop()
        ended.add(name)
        for key in waiting.get(name, ()):
            if key not in met:
                met.add(key)
                left[key[0]] -= 1
                if left[key[0]] == 0:
                    ready.append(key[0])
    return id(schema) not in ended


def _groups(schema: Any, root: Any) -> Iterator[_Group]:
    """What a schema needs to have a value that ends."""
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return
    if isinstance(schema.get("$ref"), str):
        target = _target(schema["$ref"], root)
        if target is not None:
            yield [target]
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            yield schema[word]
    for each in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        yield [each]
    kind = schema.get("type")
    if kind in ("object", ["object"]):
        inner, required = schema.get("properties"), schema.get("required")
        if isinstance(inner, dict) and isinstance(required, list):
            yield from ([inner[name]] for name in required if isinstance(name, str) and name in inner)
    if kind in ("array", ["array"]):
        least, items, first = schema.get("minItems"), schema.get("items"), schema.get("prefixItems")
        heads = first if isinstance(first, list) else []
        if isinstance(least, int | float) and least > 0:
            yield from ([each] for each in heads[: int(min(least, len(heads)))])
            if isinstance(items, dict) and least > len(heads):
                yield [items]


def _target(reference: str, root: Any) -> Any:
    """The schema that "#/..." names; None where there is none, or where it is no such reference."""
    if reference != "#" and not reference.startswith("#/"):
        return None
    found = root
    for part in unquote(reference).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict) and name in found:
            found = found[name]
        else:
            return None
    return found
