"""The `bitsmith` command and what all its subcommands share: errors, exit codes, signals."""

from __future__ import annotations

import errno
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, NoReturn

import typer

from bitsmith.errors import BitsmithError, FileError

_OUT_OF_MEMORY = "out of memory; close other programs, use fewer --threads, or a machine with more memory."

COMMANDS = {  # name -> its module in this package, and the function there
    "plan": "plan.plan",
    "quantize": "quantize.quantize",
    "eval": "evaluate.evaluate",
    "run": "run.run",
    "chat": "chat.chat",
    "bench": "bench.bench",
    "imatrix": "imatrix.imatrix",
    "inspect": "inspect.inspect",
}


def _print_version(wanted: bool) -> None:
    if wanted:
        from bitsmith.version import __version__

        typer.echo(f"bitsmith {__version__}")
        raise typer.Exit


def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the command."""


def _app(words: Sequence[str]) -> typer.Typer:
    """The command line. Of a command that `words` begin with, that command alone: the others cost time."""
    app = typer.Typer(
        name="bitsmith",
        help="Quantize large language models: make the file, prove what it lost, run it.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module, function = COMMANDS[name].split(".")
        app.command(name)(vars(import_module(f"bitsmith.cli.{module}"))[function])
    return app


def main() -> None:
    """Entry point of the `bitsmith` command.

    Exit codes: 0 done, 1 bad data, 2 a wrong call, 130 interrupted.
    """
    # Threads that spin while they wait slow down each other and every other program, several times on a busy machine.
    # libgomp reads this once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]  # accepted anywhere, not only before the command
    signal.signal(signal.SIGTERM, _terminated)
    try:
        _app(arguments)(arguments)
    except BitsmithError as error:
        if debug:
            raise
        _fail(error, error.exit_code)
    except SystemExit as leaving:  # what typer makes of Ctrl-C
        if leaving.code == 130:
            sys.stderr.write(
                "\nInterrupted; no half-written file was left.\n" if "quantize" in arguments[:1] else "\nInterrupted.\n"
            )
        raise
    except OSError as error:  # a file that nobody above could say more of: unreadable, too long a name, a dying disk
        if debug:
            raise
        _fail(_explained(error), 1)
    except MemoryError as error:
        if debug:
            raise
        _fail(error, 1)


def _explained(error: OSError) -> Exception:
    if error.errno == errno.ENOMEM:
        return MemoryError()
    what = f"{error.filename or 'the output'}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FileError(f"{what}; make room and start again.")
    return FileError(f"{what}; check its name and permissions.")


def _fail(error: BaseException, code: int) -> None:
    text = _OUT_OF_MEMORY if isinstance(error, MemoryError) else str(error)
    sys.stderr.write(textwrap.fill(f"Error: {text}", 110, break_long_words=False, break_on_hyphens=False) + "\n")
    _leave(code)


def _leave(code: int) -> None:
    sys.stderr.flush()
    sys.exit(code)


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
