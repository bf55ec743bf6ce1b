"""`bitsmith publish`."""

from __future__ import annotations

import click

from bitsmith.cli.command import Argument, command, config_options
from bitsmith.cli.options import as_json
from bitsmith.cli.say import print_json
from bitsmith.handover.publishing import PublishConfig, Published


@command("publish")
@click.argument("folder", cls=Argument, type=click.Path(), help="The folder with the files to upload.")
@config_options(PublishConfig)
@as_json
def publish(config: PublishConfig, folder: str, as_json: bool) -> None:
    """Upload a folder to the Hugging Face hub, with its card and receipts. A new model is private."""
    from bitsmith.cli.drawing import human_bytes, stdout
    from bitsmith.handover.publishing import run_publish

    shown = stdout()

    def announce(planned: Published) -> None:
        if as_json:
            return
        for name, size in planned.files.items():
            shown.print(f"  {human_bytes(size):>10}  {name}", markup=False, soft_wrap=True)
        kind = "private" if planned.private else "public"
        total = f"{len(planned.files)} files, {human_bytes(planned.size)}"
        shown.print(f"{total}, to {planned.repo} ({kind})", markup=False)
        for note in planned.notes:
            shown.print(f"note: {note}", markup=False, soft_wrap=True)

    found = run_publish(folder, config, announce=announce)
    if as_json:
        print_json(found.to_dict())
    elif config.dry_run:
        shown.print("nothing was uploaded (--dry-run)", markup=False)
    else:
        shown.print(found.url, markup=False, soft_wrap=True)
