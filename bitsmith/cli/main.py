"""The `bitsmith` command and what all its subcommands share: errors, exit codes, signals."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import textwrap
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

from bitsmith.cli.command import EVERYWHERE
from bitsmith.cli.say import Interrupted
from bitsmith.cli.starting import quiet_start
from bitsmith.errors import BitsmithError, printable

_OUT_OF_MEMORY = "out of memory; close other programs, use fewer --threads, or a machine with more memory."

_NOTHING_LEFT = "no half-written file was left"
_LEFT = {  # command -> what an interrupt leaves
    **dict.fromkeys(("quantize", "convert", "merge", "imatrix", "tune qat"), _NOTHING_LEFT),
    "pull": "the files that are complete stay, and the same command fetches the others",
    "tune qlora": "the checkpoints stay, and the same command with --resume goes on",
}
COMMANDS = {  # name -> its module in this package, and the command there
    "plan": "plan.plan",
    "quantize": "quantize.quantize",
    "convert": "convert.convert",
    "eval": "evaluate.evaluate",
    "compare": "compare.compare",
    "results": "results.results",
    "run": "run.run",
    "chat": "chat.chat",
    "serve": "serve.serve",
    "bench": "bench.bench",
    "imatrix": "imatrix.imatrix",
    "tune": "tune.tune",
    "merge": "merge.merge",
    "handover": "handover.handover",
    "publish": "publish.publish",
    "inspect": "inspect.inspect",
    "list": "stored.list_models",
    "pull": "stored.pull",
    "rm": "stored.remove",
    "clean": "clean.clean",
    "worker": "worker.worker",
    "completion": "completion.completion",
}


SECTIONS = {  # of the help; commands of no section come last
    "Plan": ("plan",),
    "Make": ("quantize", "convert", "imatrix"),
    "Train": ("tune", "merge"),
    "Prove": ("eval", "compare", "results", "bench", "inspect"),
    "Run": ("run", "chat", "serve"),
    "Give": ("handover", "publish"),
    "Models": ("list", "pull", "rm", "clean"),
    "Machines": ("worker",),
}


class _Commands(click.Group):
    """The group of all commands. Only the one that is called is imported: the others cost time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the help's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """A command by its name; None if there is none."""
        if name not in COMMANDS:
            return None
        module, command = COMMANDS[name].split(".")
        with quiet_start():
            found: click.Command = vars(import_module(f"bitsmith.cli.{module}"))[command]
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with the whole first sentence of its help, in sections."""
        lines = {name: command.get_short_help_str(limit=200) for name, command in self._all(ctx)}
        listed = {name for names in SECTIONS.values() for name in names}
        sections = {**SECTIONS, "More": tuple(name for name in lines if name not in listed)}
        for section, names in sections.items():
            rows = [(name, lines[name]) for name in names if name in lines]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows, col_max=26)

    def _all(self, ctx: click.Context) -> Iterator[tuple[str, click.Command]]:
        for name in COMMANDS:
            command = self.get_command(ctx, name)
            assert command is not None
            yield name, command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the words begin with. Raises UsageError, with a similar name, if there is none."""
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from bitsmith.version import __version__

        click.echo(f"bitsmith {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
@click.option("--debug", is_flag=True, expose_value=False, help=EVERYWHERE["--debug"])
@click.option("--log-level", metavar="LEVEL", expose_value=False, help=EVERYWHERE["--log-level LEVEL"])
@click.pass_context
def _bitsmith(ctx: click.Context) -> None:
    """Quantize large language models: make the file, prove what it lost, run it."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(2)
    from bitsmith.cli.notices import show_notices

    show_notices()


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
    if isinstance(sys.stdout, io.TextIOWrapper):  # what its encoding (ASCII, Latin-1) does not have becomes "?"
        sys.stdout.reconfigure(errors="replace")
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]  # accepted anywhere, not only before the command
    level, arguments = _without_log_level(arguments)
    if level is not None:
        from bitsmith.cli.logs import LEVELS, log_to_stderr

        if level not in LEVELS:
            _fail(f"--log-level {level}: unknown; expected {', '.join(LEVELS)}.", 2)
        log_to_stderr(level)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = _bitsmith.main(arguments, prog_name="bitsmith", standalone_mode=False)
    except click.ClickException as error:
        _fail(_usage(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stopped:  # click has ended the line
        if isinstance(stopped.__cause__, EOFError):
            _fail("the input ended too early.", 1)
        _interrupted(stopped, _LEFT.get(" ".join(arguments[: 2 if arguments[:1] == ["tune"] else 1])))
    except (BitsmithError, OSError, MemoryError) as error:
        if debug:
            raise
        message = _explained(error)
        notes = [str(note) for note in getattr(error, "__notes__", ()) if str(note) not in message]
        _fail(message, error.exit_code if isinstance(error, BitsmithError) else 1, notes)
    if code:
        _leave(code)


def _without_log_level(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of --log-level, which may stand anywhere before "--", and the other arguments."""
    level: str | None = None
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return level, [*rest, word, *words]
        if word == "--log-level":
            level = next(words, "")
        elif word.startswith("--log-level="):
            level = word.partition("=")[2]
        else:
            rest.append(word)
    return level, rest


def _usage(error: click.ClickException) -> str:
    """What is wrong with the call, and where the help is."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = "bitsmith" if context is None else context.command_path
    text = " ".join(error.format_message().split())
    return f"{text if text.endswith(('.', '?', '!')) else text + '.'} Try '{path} --help'."


def _explained(error: Exception) -> str:
    """An error's message. Nobody else could say more of an OSError: unreadable, too long a name, a dying disk."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return _OUT_OF_MEMORY
    if not isinstance(error, OSError):
        return error.flags if isinstance(error, BitsmithError) else str(error)
    what = f"{error.filename or 'the output'}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}; make room and start again."
    return f"{what}; check its name and permissions."


def _interrupted(stopped: click.Abort | KeyboardInterrupt, left: str | None) -> NoReturn:
    """Say what an interrupt has left. An output that was stopped while its names changed has noted it."""
    interrupt = stopped.__cause__ or stopped
    notes = [str(note) for note in getattr(interrupt, "__notes__", ())]
    told = [stopped.note] if isinstance(stopped, Interrupted) else [left] if left else []
    told = [*told, *notes] if isinstance(stopped, Interrupted) and stopped.always else notes or told
    sys.stderr.write("; ".join(["Interrupted", *told]) + ".\n")
    _leave(130)


def _fail(message: str, code: int, notes: Iterable[str] = ()) -> NoReturn:
    """notes: further sentences without their full stops, a line each"""
    for line in (f"Error: {message}", *(f"Note: {note}." for note in notes)):
        text = printable(line, keep="\n")
        sys.stderr.write(textwrap.fill(text, 110, break_long_words=False, break_on_hyphens=False) + "\n")
    _leave(code)


def _leave(code: int) -> NoReturn:
    sys.stderr.flush()
    sys.exit(code)


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
