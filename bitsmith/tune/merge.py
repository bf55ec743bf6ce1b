"""`merge`: an adapter into the 16-bit original, and both quantized in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bitsmith.containers.floats import WRITTEN_FLOATS
from bitsmith.errors import UsageError
from bitsmith.models.adapter import read_adapter
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.system.options import check_arguments, check_words, option, with_signature
from bitsmith.system.progress import Report, silent
from bitsmith.tune.merged import merged

if TYPE_CHECKING:
    from bitsmith.evaluation import Evaluation
    from bitsmith.pipeline.result import Quantized
    from bitsmith.runtime.language_model import LanguageModel
    from bitsmith.tune.merge_words import MergeWords


@dataclass(frozen=True, kw_only=True)
class MergeConfig(QuantizeConfig):
    """All options of `merge` except the model, the adapter and the target."""

    measure: bool = option(
        True,
        "--measure/--no-measure",
        group="Output",
        help="Measure what the result lost against the original with the adapter beside it.",
    )
    text: str | Path | Sequence[str | Path] | None = option(
        None, group="Output", metavar="SOURCE", help="Text to measure on; repeatable; default: a built-in one."
    )
    max_windows: int = option(40, group="Output", help="Windows of 512 tokens to measure on, at most.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_windows < 1:
            raise UsageError(f"--max-windows={self.max_windows}: expected 1 or more.")


@dataclass(frozen=True)
class Merged:
    """A merged model and what it lost.

    loss: against original + adapter; None where it was not measured
    """

    quantized: Quantized
    loss: Evaluation | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self.quantized.to_dict() | {"loss": None if self.loss is None else self.loss.to_dict()}


def merge(
    model: str | Path,
    adapter: str | Path,
    *,
    to: str,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
    **words: Unpack[MergeWords],
) -> Merged:
    """Add an adapter to a 16-bit model, tensor by tensor, and quantize the sum in one pass.

    model: the adapter's base: a folder, a hub name or "reference"
    adapter: a folder in PEFT's layout
    to: as in `bitsmith.quantize`, or bf16, f16, f32 for a Hugging Face folder
    The other keywords are the options of `bitsmith merge`. Raises UnsupportedError for a base that is quantized,
    FileError for an adapter of another base.
    """
    check_words("merge", MergeConfig, words, further=("to", "report", "on_plan"))
    check_arguments(merge, {"model": model, "adapter": adapter, "to": to})
    return run_merge(model, adapter, to, MergeConfig(**words), report=report, on_plan=on_plan)


with_signature(merge, MergeConfig)


def run_merge(
    model: str | Path,
    adapter: str | Path,
    to: str,
    config: MergeConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> Merged:
    """The same as `merge`, with a configuration."""
    original = open_checkpoint(model, revision=config.revision)
    low = read_adapter(adapter, original)
    made = _made(merged(original, low), to, config, report, on_plan)
    if config.dry_run or not config.measure or isinstance(original.shape, Exception):
        return Merged(made, None)
    beside = replace(original, overrides=replace(original.overrides, adapter=low))
    return Merged(made, _loss(made, beside, config, report))


def _made(
    checkpoint: Checkpoint, to: str, config: MergeConfig, report: Report, on_plan: Callable[[Quantized], None] | None
) -> Quantized:
    if to.strip().lower() in WRITTEN_FLOATS:
        from bitsmith.pipeline.conversion import convert_checkpoint
        from bitsmith.pipeline.convert_config import ConvertConfig

        shared = {each.name for each in fields(ConvertConfig)} & {each.name for each in fields(MergeConfig)}
        chosen = ConvertConfig(to=to, **{name: getattr(config, name) for name in shared})
        return convert_checkpoint(checkpoint, chosen, report=report, on_plan=on_plan)
    from bitsmith.pipeline.quantization import quantize_checkpoint

    return quantize_checkpoint(checkpoint, [to], config, report=report, on_plan=on_plan)[0]


def _loss(made: Quantized, beside: Checkpoint, config: MergeConfig, report: Report) -> Evaluation:
    from bitsmith.evaluation import evaluate

    context = min(512, beside.config.context)
    found = evaluate(
        _loaded(open_checkpoint(made.out), config, report),
        against=_loaded(beside, config, report),
        text=config.text,
        context=context,
        max_windows=config.max_windows,
        report=report,
    )
    adapter = beside.overrides.adapter
    return replace(found, against=f"{found.against} with {'its adapter' if adapter is None else adapter.path.name}")


def _loaded(checkpoint: Checkpoint, config: MergeConfig, report: Report) -> LanguageModel:
    from bitsmith.runtime.load import choose_kernel, load_language_model

    kernel = choose_kernel(checkpoint, None, default="exact")
    return load_language_model(checkpoint, kernel=kernel, threads=config.threads, report=report)
