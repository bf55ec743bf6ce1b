"""`bitsmith list`, `bitsmith pull` and `bitsmith rm`: the models on this machine."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import Argument, command, flag
from bitsmith.cli.options import as_json, revision

if TYPE_CHECKING:
    from bitsmith.models.stored import StoredModel

_DAY = 86400


@command("list")
@click.argument(
    "folder",
    cls=Argument,
    type=click.Path(path_type=Path),
    default=Path("."),
    help="Folder to look into, two levels deep; default: the current one.",
)
@as_json
def list_models(folder: Path, as_json: bool) -> None:
    """List the models on this machine: in the hub's cache, and in a folder."""
    from bitsmith.cli.drawing import human_bytes, plain_table
    from bitsmith.models import stored

    models = stored.list_models(folder)
    if as_json:
        click.echo(json.dumps([model.to_dict() for model in models], indent=2))
        return
    if models:
        rows = [
            (_named(model), model.kind, model.quantization, human_bytes(model.size), _ago(model.last_used))
            for model in models
        ]
        click.echo(plain_table(("model", "kind", "quantization", "size", "last used"), rows, right=("size",)))
    cached = sum(model.size for model in models if model.in_cache)
    where = f"the hub's cache, {stored.cache_folder()}"
    click.echo(
        f"{human_bytes(cached)} in {where}."
        if cached
        else f"No models in {where}; `bitsmith pull owner/name` fetches one.",
        err=True,
    )
    for model in models:
        if not model.complete:
            again = f"`bitsmith pull {model.name}` fetches the rest" if model.in_cache else "fetch its other files"
            click.echo(f"Note: {_named(model)} is not complete; {again}.", err=True)


def asked() -> bool:
    """Whether somebody can answer a question: standard input is a terminal."""
    return sys.stdin.isatty()


def _named(model: StoredModel) -> str:
    return model.name if model.revision is None else f"{model.name} --revision {model.revision}"


def _ago(then: float) -> str:
    """How long ago, in days: "today", "12 days ago"."""
    days = int(max(0.0, time.time() - then) // _DAY)
    return "today" if days == 0 else "yesterday" if days == 1 else f"{days} days ago"


@command("pull")
@click.argument("name", cls=Argument, help="owner/name, owner/name:Q4_K_M, or owner/name:file.gguf.")
@revision
@as_json
def pull(name: str, revision: str | None, as_json: bool) -> None:
    """Fetch a model from the Hugging Face hub into its cache.

    After an interruption, files that are complete are not fetched again. The commands run, chat, quantize and the
    others fetch what they need by themselves; this fetches it beforehand.
    """
    from bitsmith.cli.drawing import human_bytes, progress_bar
    from bitsmith.models import pulling

    with progress_bar() as report:
        found = pulling.pull(name, revision=revision, report=report)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
        return
    click.echo(f"{found.name}: {human_bytes(found.size)} in {found.path}")
    more = [] if revision is None else ["--revision", revision]
    click.echo(f"Run it: {shlex.join(['bitsmith', 'run', found.name, *more])}")


@command("rm")
@click.argument("name", cls=Argument, help="As `bitsmith list` shows it: owner/name, or owner/name:Q4_K_M.")
@flag("--yes", "-y", help="Do not ask.")
@revision
@as_json
@click.pass_context
def remove(ctx: click.Context, name: str, yes: bool, revision: str | None, as_json: bool) -> None:
    """Remove a model from the Hugging Face hub's cache.

    owner/name removes everything of a repository, owner/name:Q4_K_M one of its GGUF models. Files outside the cache are
    never touched.
    """
    from bitsmith.cli.drawing import clean, human_bytes
    from bitsmith.errors import UsageError
    from bitsmith.models.removal import find_removal

    found = find_removal(name, revision=revision)
    if not yes:
        if not asked():
            raise UsageError(f"{name}: nobody can be asked here; give --yes to remove it without a question.")
        click.echo(clean("; ".join(file.name for file in found.files[:20])), err=True)
        if not click.confirm(f"Remove {name} from the cache ({human_bytes(found.size)})?", err=True):
            click.echo("Nothing was removed.", err=True)
            ctx.exit(1)
    found.execute()
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        click.echo(f"Removed {name}: {human_bytes(found.size)} freed.")
