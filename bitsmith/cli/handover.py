"""`bitsmith handover`."""

from __future__ import annotations

import click

from bitsmith.cli.command import command, config_options, model_argument
from bitsmith.cli.options import as_json, quiet
from bitsmith.cli.say import print_json
from bitsmith.handover.config import HandoverConfig


@command("handover")
@model_argument("The GGUF file or folder to give.")
@config_options(HandoverConfig)
@quiet
@as_json
@click.pass_context
def handover(ctx: click.Context, config: HandoverConfig, model: str, quiet: bool, as_json: bool) -> None:
    """Give a file to the runtime that runs it: write what it needs, say how to start it, prove that it works.

    --check starts the real runtime on the file and compares its answers with bitsmith's own. The exit code is 1 if
    one differs; the receipt says which.
    """
    from bitsmith.cli.drawing import progress_bar, stderr, stdout
    from bitsmith.handover.handing import RECEIPT, run_handover

    def announce(text: str) -> None:
        if not quiet:
            stderr().print(f"{text} ...", markup=False)

    with progress_bar(quiet) as report:
        found = run_handover(model, config, report=report, announce=announce)
    if as_json:
        print_json(found.to_dict())
        ctx.exit(0 if found.good is not False else 1)
    shown = stdout()
    for check in found.checks:
        mark = {True: "ok", False: "FAILED", None: "-"}[check.passed]
        reason = f": {check.reason}" if check.reason else ""
        shown.print(f"  {mark:<6} {check.name}{check.measured}{reason}", markup=False, soft_wrap=True)
    if found.good is False:
        shown.print(f"{found.verdict}. The receipt is {found.out / RECEIPT}", markup=False, soft_wrap=True)
        ctx.exit(1)
    shown.print(f"wrote {found.out}: {', '.join(found.files)}", markup=False, soft_wrap=True)
    shown.print(found.command, markup=False, soft_wrap=True)
    for note in found.notes:
        shown.print(f"note: {note}", markup=False, soft_wrap=True)
    if found.verdict:
        shown.print(found.verdict, markup=False, soft_wrap=True)
