"""`bitsmith plan --quantize --workers N`: what quantizing on several workers takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from bitsmith.cli.command import flag, option
from bitsmith.cli.say import print_json

if TYPE_CHECKING:
    from bitsmith.pipeline.spread_plan import SpreadPlan


def spread_options(function: Callable[..., None]) -> Callable[..., None]:
    """Options of `plan` that plan `quantize` on several workers instead of what `function` plans."""

    @wraps(function)
    def called(quantize: bool, workers: int, threads: int | None, link: str, **words: Any) -> None:
        if not quantize or words["model"] is None:
            function(**words)
            return
        to, as_json = (*words["format"], "q4_k_m")[0], words["as_json"]
        show_spread(words["model"], to=to, workers=workers, threads=threads, link=link, as_json=as_json)

    result: Callable[..., None] = called
    for each in reversed(
        (
            flag(
                "--quantize", group="Workers", help="Plan `quantize` to --format (default q4_k_m) on several workers."
            ),
            option("--workers", type=int, default=16, group="Workers", help="Number of workers."),
            option(
                "--threads", type=int, group="Workers", help="Threads of each worker; default: as many as cores here."
            ),
            option(
                "--link", default="1.25GB", metavar="SIZE", group="Workers", help="Each machine's network, a second."
            ),
        )
    ):
        result = each(result)
    return result


def show_spread(model: str, *, to: str, workers: int, threads: int | None, link: str, as_json: bool) -> None:
    """Plan and print it."""
    from bitsmith.pipeline.spread_plan import plan_spread

    found = plan_spread(model, to=to, workers=workers, threads=threads, link=link)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: SpreadPlan) -> None:
    from bitsmith.cli.drawing import clean, human_bytes, human_seconds, plain_table, stdout

    console, spread, alone = stdout(), found.spread, found.alone
    console.print(f"{clean(found.model)} to {found.target}, {found.workers} workers", style="bold", markup=False)
    rows = [
        ("time", human_seconds(spread.seconds), f"{human_seconds(alone.seconds)} with one worker"),
        ("of it working", human_seconds(spread.working), "then the head writes the rest and reads all back"),
        ("workers compute", f"{100 * spread.busy:.0f} %", "of their time; the rest is reading and writing"),
        ("tasks", f"{found.tasks:,}", f"{found.parameters / 1e9:.4g} B weights"),
        ("network", human_bytes(round(spread.moved)), f"{human_bytes(found.source)} of it are the source"),
        ("results", human_bytes(round(spread.waiting)), "in the storage at most"),
        ("output", human_bytes(found.output), "on the head's disk"),
    ]
    console.print(plain_table(("plan", "amount", ""), rows, right=("amount",)), markup=False, soft_wrap=True)
    cluster = found.cluster
    threads = f"{found.threads} thread{'' if found.threads == 1 else 's'} of {found.rate / 1e6:.0f} M weights/s"
    console.print(
        f"each worker: {threads}, as one of this machine rounds; links of {human_bytes(round(cluster.link))}/s, a "
        f"storage of {human_bytes(round(cluster.storage))}/s, a disk of {human_bytes(round(cluster.disk))}/s.",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
