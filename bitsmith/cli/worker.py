"""`bitsmith worker`."""

from __future__ import annotations

import re

import click

from bitsmith.cli.command import Argument, command, option
from bitsmith.errors import UsageError

_MEMBER = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


@command("worker")
@click.argument("store", cls=Argument, help="Where the graph of tasks lies: the folder or address of its results.")
@click.argument("member", cls=Argument, default="0/1", help="Which of how many workers this is: 0/4 to 3/4.")
@option("--threads", type=int, default=1, group="Machine", help="Number of threads.")
def worker(store: str, member: str, threads: int) -> None:
    """Do tasks of a run that has several workers. The scripts of `--executor slurm` call it."""
    from bitsmith.scale.worker import work
    from bitsmith.system.machine import check_threads

    check_threads(threads)
    found = _MEMBER.fullmatch(member)
    if found is None:
        raise UsageError(f"MEMBER {member}: expected a number and how many there are, such as 0/4.")
    work(store, member=int(found[1]), of=int(found[2]), threads=threads)
