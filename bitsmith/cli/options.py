"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from bitsmith.cli.command import flag, option

F = TypeVar("F", bound=Callable[..., Any])
_KERNELS = (
    "int8 (C++, packed weights, inputs of prompts rounded to int8), exact (C++, nothing rounded), torch; "
    "default: {default} if the C++ core can run the model"
)

temperature = option(
    "--temperature", "-t", type=float, default=0.8, group="Sampling", help="0 takes the most likely token each time."
)
top_k = option("--top-k", type=int, default=40, group="Sampling", help="Keep the N most likely tokens; 0: all.")
top_p = option(
    "--top-p",
    type=float,
    default=0.95,
    group="Sampling",
    help="Keep the most likely tokens that together have this probability.",
)
min_p = option(
    "--min-p",
    type=float,
    default=0.05,
    group="Sampling",
    help="Drop tokens whose probability is below this share of the highest.",
)
seed = option(
    "--seed", type=int, group="Sampling", help="The same seed gives the same text; default: a new one each time."
)
threads = option("--threads", type=int, group="Machine", help="Number of threads; default: one per core.")
kernel = option("--kernel", metavar="NAME", group="Machine", help=f"What computes: {_KERNELS.format(default='int8')}.")
exact_kernel = option(
    "--kernel", metavar="NAME", group="Machine", help=f"What computes: {_KERNELS.format(default='exact')}."
)
cache = option(
    "--cache",
    default="f16",
    metavar="TYPE",
    group="Machine",
    help="Type of stored keys and values: f16, q8_0 (half the memory) or f32; only for --kernel int8.",
)
revision = option("--revision", metavar="NAME", group="Source", help="Branch, tag or commit of a model of the hub.")
quiet = flag("--quiet", "-q", group="Output", help="Show no progress.")
as_json = flag("--json", "as_json", group="Output", help="Print the result as JSON.")


def sampling(function: F) -> F:
    """All options that choose tokens."""
    return temperature(top_k(top_p(min_p(seed(function)))))


def runtime(function: F) -> F:
    """All options of loading a model to run it."""
    return revision(threads(kernel(cache(function))))
