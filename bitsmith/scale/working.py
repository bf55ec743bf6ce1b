"""Running one task: where its inputs are read, its function is called, and its result is kept."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from bitsmith import errors
from bitsmith.errors import BitsmithError, ResourceError, UsageError
from bitsmith.scale.store import LostError, Store
from bitsmith.scale.task import Place, Task, function_of
from bitsmith.system.pressure import is_shortage, memory_now
from bitsmith.work.key import program
from bitsmith.work.state import DamagedError, State

_ERROR = "error-"  # names of what is kept of a task that failed


def run_task(task: Task, store: Store, place: Place) -> None:
    """Run a task and keep its result.

    Raises LostError for an input that is not there; ResourceError if memory runs out; and as its function.
    """
    try:
        _run(task, store, place)
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_shortage(error):
            raise
        why = str(error).strip().splitlines()[:1]
        raise ResourceError(
            f"{task.name}: a worker found no memory for it ({why[0] if why else 'MemoryError'}; it has "
            f"{memory_now().resident / 1e6:,.0f} MB). Let fewer --workers run on a machine, or raise what limits each."
        ) from error


def _run(task: Task, store: Store, place: Place) -> None:
    with ExitStack() as stack:
        inputs = {key: stack.enter_context(store.read(key)) for key in task.inputs}
        try:
            values, arrays = function_of(task.kind)(task.arguments, [*inputs.values()], place)
        except DamagedError as error:
            raise _damaged(inputs) from error
        store.write(task.key, values, arrays)


def _damaged(inputs: Mapping[str, State]) -> LostError:
    """Which of some states is damaged."""
    for key, state in inputs.items():
        try:
            state.check()
        except DamagedError as error:
            return LostError(key, f"is damaged ({error})")
    return LostError(next(iter(inputs)), "could not be read")


def check_program(wanted: Mapping[str, Any]) -> None:
    """Raise UsageError if what computes here is not what the run asks for: its bytes could differ."""
    here = program()
    differing = [name for name in sorted({*wanted, *here}) if wanted.get(name) != here.get(name)]
    if differing:
        told = "; ".join(f"{name}: {_shown(wanted, name)} there, {_shown(here, name)} here" for name in differing)
        raise UsageError(
            f"this worker is not the program of the run ({told}); install the same versions where workers run."
        )


def _shown(program: Mapping[str, Any], name: str) -> str:
    value = program.get(name, "none")
    return " ".join(str(each)[:12] for each in (value if isinstance(value, list) else [value]))


def keep_error(task: Task, store: Store, error: BitsmithError) -> None:
    """Tell the head why a task cannot be done."""
    store.write(f"{_ERROR}{task.key}", {"kind": type(error).__name__, "message": error.message}, {})


def raise_errors(store: Store, keys: set[str]) -> None:
    """Raise what a worker has told. keys: of the store"""
    for key in sorted(keys):
        if key.startswith(_ERROR):
            with store.read(key) as state:
                told = state.values
            store.drop(key)
            raise error_of(told["kind"], told["message"])


def forget_errors(store: Store) -> None:
    """Remove what workers of an earlier start have told."""
    for key in store.present():
        if key.startswith(_ERROR):
            store.drop(key)


def error_of(kind: str, message: str) -> BitsmithError:
    """The error of a name and a message."""
    found = vars(errors).get(kind)
    known = isinstance(found, type) and issubclass(found, BitsmithError)
    return found(message) if known and found is not None else BitsmithError(message)
