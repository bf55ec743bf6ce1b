"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 takes the likeliest token each time.")]
TopK = Annotated[int, typer.Option(help="Keep the K likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that hold this much probability.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this share of the likeliest.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same text; default: a new one each time.")]
Threads = Annotated[int | None, typer.Option(help="Threads for arithmetic; default: one a core.", show_default=False)]
_KERNELS = "native (C++, packed weights; prompts are rounded to int8), exact (C++, nothing rounded), torch"
Kernel = Annotated[
    str | None,
    typer.Option(help=f"What computes: {_KERNELS}; default: native where it can.", show_default=False),
]
ExactKernel = Annotated[
    str | None,
    typer.Option(help=f"What computes: {_KERNELS}; default: exact where it can.", show_default=False),
]
CacheType = Annotated[
    str, typer.Option("--cache", help="How keys and values are kept: f16, q8_0 (half the memory), f32; native only.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; default: CUDA where it is.", show_default=False)]
