"""ConvertConfig: every option of `convert`, for the command line and the library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bitsmith.calibration.config import FRESH, size_in_bytes
from bitsmith.containers.floats import WRITTEN_FLOATS
from bitsmith.errors import UsageError, quoted
from bitsmith.recipe.copies import SAME
from bitsmith.recipe.target import MMPROJ, Target
from bitsmith.scale.config import ScaleConfig
from bitsmith.system.machine import check_threads, cores
from bitsmith.system.options import check_types, option

GGUF_LORA = "gguf-lora"  # an adapter: `bitsmith.tune.gguf_lora`
_FOLDERS = ("hf", "native")  # names of the Hugging Face folder in --to


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(ScaleConfig):
    """All options of `convert` except the model. Raises UsageError for a value that is never valid."""

    to: str | None = option(
        None,
        group="Output",
        metavar="TYPE",
        help="bf16, f16 or f32: a Hugging Face folder of this type; gguf/bf16, gguf/f16 or gguf/f32: a GGUF file; "
        "mmproj: the parts for images of a model, for llama.cpp; gguf-lora: an adapter of PEFT's, for llama.cpp; "
        "default: the source's own types, every byte kept.",
    )
    out: str | Path | None = option(
        None,
        "-o",
        group="Output",
        metavar="PATH",
        help="Output file or folder; a name that ends in .gguf makes a GGUF file; default: a name made from the model.",
    )
    max_shard_size: str | None = option(
        None,
        "--shard-size",
        "--max-shard-size",
        group="Output",
        metavar="SIZE",
        help="Split the output into files of at most this size: 2GB, 512MiB; default: one file.",
    )
    model_name: str | None = option(
        None, "--name", group="Output", metavar="TEXT", help="The model's name in a GGUF file (general.name)."
    )
    dry_run: bool = option(False, group="Output", help="Print only the plan: types, exact size, expected time.")
    force: bool = option(False, group="Output", help="Replace an output that exists.")
    fresh: bool = option(False, group="Output", help=FRESH)
    base: str | Path | None = option(
        None, group="Source", metavar="MODEL", help="The model of an adapter; default: the one that it names."
    )
    pre: str | None = option(
        None, group="Source", metavar="NAME", help="Name of the pre-tokenizer, if it is not recognised."
    )
    revision: str | None = option(
        None, group="Source", metavar="NAME", help="Branch, tag or commit of a model of the hub."
    )
    threads: int | None = option(None, group="Machine", help="Number of threads; default: one per core.")

    def __post_init__(self) -> None:
        check_types(self)
        check_threads(self.threads)
        self.check_executor()
        size_in_bytes("--shard-size", self.max_shard_size)
        if not self.of_adapter:
            self.target  # noqa: B018 - raises for a wrong --to
        if self.executor is not None and self.of_adapter:
            raise UsageError(f"--executor={self.executor}: an adapter is converted in one process; leave it out.")
        if self.base is not None and not self.of_adapter:
            raise UsageError(f"--base is for adapters, with --to={GGUF_LORA}; leave it out.")

    @property
    def of_adapter(self) -> bool:
        """Whether an adapter is converted, see `bitsmith.convert_adapter`."""
        return (self.to or "").strip().lower() == GGUF_LORA

    @property
    def target(self) -> Target | None:
        """The float type and its container; None to keep every byte. Raises UsageError for any other `to`."""
        if self.to is None or self.to.strip().lower() == SAME:
            return None
        container, slash, name = self.to.strip().lower().rpartition("/")
        if name == MMPROJ and container in ("", "gguf"):
            return Target("gguf", MMPROJ)
        if name not in WRITTEN_FLOATS or (slash and container not in ("gguf", *_FOLDERS)):
            raise UsageError(
                f"--to={quoted(self.to)}: convert writes bf16, f16 and f32, as a Hugging Face folder or as gguf/bf16, "
                "gguf/f16, gguf/f32, and mmproj. For other formats use `bitsmith quantize`."
            )
        as_gguf = container == "gguf" or (not slash and str(self.out or "").lower().endswith(".gguf"))
        return Target("gguf" if as_gguf else "native", name)

    @property
    def max_shard_bytes(self) -> int | None:
        """Largest size of one output file; None for no limit."""
        return size_in_bytes("--shard-size", self.max_shard_size)

    @property
    def worker_threads(self) -> int:
        """The number of threads; one per core if none was given."""
        return cores() if self.threads is None else self.threads
