"""The `bitsmith` command and what all its subcommands share: errors, exit codes, signals."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from types import FrameType
from typing import Annotated, Any

import typer

from bitsmith.cli import chat, evaluate, imatrix, inspect, quantize, run
from bitsmith.errors import BitsmithError

app = typer.Typer(
    name="bitsmith",
    help="Quantize large language models: make the file, prove what it lost, run it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from bitsmith import __version__

        typer.echo(f"bitsmith {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    _debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options that stand before the command."""


app.command("quantize")(quantize.quantize)
app.command("eval")(evaluate.evaluate)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("imatrix")(imatrix.imatrix)
app.command("inspect")(inspect.inspect)


def main() -> None:
    """Entry point of the `bitsmith` command.

    Exit codes: 0 done, 1 bad data, 2 a wrong call, 130 interrupted, 141 the reader of the output went away.
    """
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]  # accepted anywhere, not only before the command
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(arguments)
    except BitsmithError as error:
        if debug:
            raise
        _fail(error, error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("\nInterrupted; no file was left under its final name.\n")
        _leave(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(141)
    except MemoryError as error:
        if debug:
            raise
        _fail(error, 1)


def _fail(error: BaseException, code: int) -> None:
    text = str(error) or "out of memory; close other programs, use fewer --threads, or a machine with more memory."
    sys.stderr.write(textwrap.fill(f"Error: {text}", 110, break_long_words=False, break_on_hyphens=False) + "\n")
    _leave(code)


def _leave(code: int) -> None:
    sys.stderr.flush()
    sys.exit(code)


def _terminated(signum: int, frame: FrameType | None) -> Any:
    raise KeyboardInterrupt
