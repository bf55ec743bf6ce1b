"""The plan of the house, held against the imports: rooms in order, no circles, a small root."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import bitsmith

PACKAGE = Path(bitsmith.__file__).parent
ROOMS = (  # from the top down: each room imports only from those below it
    *(
        "cli",
        "serve",
        "api",
        "comparison",
        "tune",
        "handover",
        "pipeline",
        "planner",
        "calibration",
        "recipe",
        "torch_modules",
    ),
    *(
        "runtime",
        "models",
        "scale",
        "work",
        "containers",
        "evaluation",
        "texts",
        "quant",
        "system",
        "reference",
        "errors",
        "version",
    ),
)
FACE = ("__init__", "__main__", "torch")  # what users import, and what `python -m` runs: above all rooms


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name without "bitsmith."."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module) -> Iterator[str]:
    """Names without "bitsmith." that a module imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("bitsmith."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bitsmith":
            inner = (node.module or "").partition(".")[2]
            yield from ([inner] if inner else []) if inner else (alias.name for alias in node.names)


def room(name: str) -> str:
    return name.split(".")[0]


def test_imports_run_down() -> None:
    up = [
        f"{name} imports {other}"
        for name, tree in modules().items()
        if name not in FACE
        for other in imports(tree)
        if ROOMS.index(room(other)) < ROOMS.index(room(name))
    ]
    assert up == []


def test_every_room_is_in_the_plan() -> None:
    assert {room(name) for name in modules()} - set(FACE) == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*FACE, "api", "errors", "version"}


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports that run when a module is imported form no circle; those inside functions run later."""
    trees = modules()
    arrows = {
        name: {other for other in imports(_eager(tree)) if other in trees and other != name}
        for name, tree in trees.items()
    }
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, f"a circle: {' -> '.join([*trail, name])}"
        if name in state:
            return
        state[name] = 1
        for other in arrows[name]:
            visit(other, (*trail, name))
        state[name] = 2

    for name in arrows:
        visit(name, ())


def _eager(tree: ast.Module) -> ast.Module:
    """The statements that run on import: not those of functions, nor those for type checkers alone."""
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return ast.Module(body, [])
