"""`convert`: a model in another file layout: 16 bits from any format, merged, split or renamed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from bitsmith.calibration.method import Method
from bitsmith.calibration.resources import Resources
from bitsmith.containers.destination import followed
from bitsmith.containers.reservation import Reservation
from bitsmith.containers.safetensors_layout import INDEX_NAME
from bitsmith.errors import FileError, UsageError, quoted
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.models.naming import output_stem
from bitsmith.pipeline.convert_config import ConvertConfig
from bitsmith.pipeline.outputs import Output
from bitsmith.pipeline.result import Quantized
from bitsmith.pipeline.spread import spread_of
from bitsmith.recipe.copies import as_conversion, assign_copy
from bitsmith.recipe.plan import Assignment
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import PlanOptions
from bitsmith.scale.executors import Submitted
from bitsmith.system.options import check_words, with_signature
from bitsmith.system.progress import Report, silent

if TYPE_CHECKING:
    from bitsmith.pipeline.convert_words import ConvertWords


def convert(
    model: str | Path,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
    **words: Unpack[ConvertWords],
) -> Quantized:
    """Convert `model` to 16-bit floats, or merge, split or rename it with every byte kept.

    The other keywords are the options of `bitsmith convert`; `bitsmith.pipeline.convert_config.ConvertConfig` describes
    them.

    model: a folder, a file, a hub name or "reference"
    on_plan: called with the plan before any weight is read
    Raises UsageError for a wrong call, other BitsmithErrors for bad data. After an error the output does not exist.
    """
    check_words("convert", ConvertConfig, words, further=("report", "on_plan"))
    return convert_model(model, ConvertConfig(**words), report=report, on_plan=on_plan)


with_signature(convert, ConvertConfig)


def convert_model(
    model: str | Path,
    config: ConvertConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> Quantized:
    """Convert `model` as `config` says, see `convert`."""
    if config.of_adapter:
        raise UsageError("convert makes models; adapters are converted by bitsmith.convert_adapter.")
    return convert_checkpoint(open_checkpoint(model, revision=config.revision), config, report=report, on_plan=on_plan)


def convert_checkpoint(
    checkpoint: Checkpoint,
    config: ConvertConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Quantized], None] | None = None,
) -> Quantized:
    """The same as `convert_model`, of a model that is open."""
    _check_whole(checkpoint)
    given = _path(checkpoint, config)
    path = followed(given, force=config.force or config.dry_run)
    assignment = as_conversion(_assignment(checkpoint, config, path))
    _check_changes(checkpoint, assignment, config)
    output = Output(path, assignment, Method("nearest"), "", link=given if given != path else None)
    expected = output.expected(config.worker_threads)
    if config.dry_run:
        output.destination()  # raises where it cannot be written
        if on_plan is not None:
            on_plan(expected)
        return expected
    from bitsmith.pipeline.keeping import Kept
    from bitsmith.pipeline.making import Work, make_all

    spread = spread_of(config, checkpoint, (), ("convert",))
    resources = Resources(None, config.worker_threads, "cpu")
    kept = Kept.of([output], checkpoint.files, fresh=config.fresh, further={})
    try:
        with (
            Reservation(
                kept.destinations, sources=checkpoint.files, force=config.force, finished=kept.is_finished
            ) as reservation,
            kept.opened(),
        ):
            if on_plan is not None:
                on_plan(replace(expected, told=(*expected.told, *kept.notes)))
            work = Work(None, resources, config.worker_threads, reservation, kept, spread)
            made = make_all([output], [expected], work, report=report)[0]
            if spread is not None:
                spread.remove(kept.folders)
            return made
    except Submitted as submitted:
        return replace(expected, submitted=submitted.script)


def _check_whole(checkpoint: Checkpoint) -> None:
    """Raise UsageError if the user named one shard of a folder: the output would be a part of the model."""
    folder, path = checkpoint.folder, checkpoint.source.path
    if folder is not None and path.is_file() and (folder / INDEX_NAME).is_file():
        raise UsageError(f"{path} is one of the shards of a model; give the folder, {folder}.")


def _assignment(checkpoint: Checkpoint, config: ConvertConfig, path: Path) -> Assignment:
    options = PlanOptions(
        pre=config.pre,
        max_shard_bytes=config.max_shard_bytes,
        requantize=True,
        filename=path.name,
        model_name=config.model_name,
    )
    target = config.target
    if target is None:
        return assign_copy(checkpoint, options)
    if target.is_folder:
        checkpoint.config  # noqa: B018 - raises where the folder would have no config.json for transformers
    return assign(checkpoint, target, options)


def _is_folder(checkpoint: Checkpoint, config: ConvertConfig) -> bool:
    return checkpoint.naming == "hf" if config.target is None else config.target.is_folder


def _path(checkpoint: Checkpoint, config: ConvertConfig) -> Path:
    """The output's path: the one given, or a name made from the model. Raises UsageError for a wrong ending."""
    folder, out = _is_folder(checkpoint, config), config.out
    usual = _usual_name(checkpoint, config)
    if out is None:
        return Path(usual)
    path = Path(out)
    if not folder and path.is_dir():
        return path / usual
    if folder and path.suffix.lower() in (".gguf", ".safetensors"):
        raise UsageError(
            f"--out={quoted(out)}: the output is a Hugging Face folder, but this is a file's name; give a "
            "folder's name, or --to=gguf/bf16 for a GGUF file."
        )
    return path


def _usual_name(checkpoint: Checkpoint, config: ConvertConfig) -> str:
    """A name made from the model, which is not the source's own."""
    target = config.target
    if target is not None:
        stem = output_stem(checkpoint.name)
        return f"{stem}-{target.name}" if target.is_folder else target.gguf_name(stem)
    base = f"{checkpoint.name}-{'split' if config.max_shard_bytes else 'merged'}"
    if config.model_name is not None:
        base = re.sub(r"[^\w.-]+", "-", config.model_name).strip("-.") or "renamed"
    return base if _is_folder(checkpoint, config) else f"{base}.gguf"


def _check_changes(checkpoint: Checkpoint, assignment: Assignment, config: ConvertConfig) -> None:
    """Raise UsageError if the output would be a mere copy, or if it has no place for the name."""
    if config.model_name is not None and assignment.target.is_folder:
        raise UsageError("--name is for GGUF files; a Hugging Face folder is named by its path, with --out.")
    if config.model_name is not None and not config.model_name.strip():
        raise UsageError("--name is empty; give the model's name.")
    if config.target is None and config.model_name is None:
        parts = len(Output(Path("out"), assignment, Method("nearest"), "").plan(None).layouts())
        if parts == len(checkpoint.source.files) == 1:
            raise UsageError(
                f"{checkpoint.source.path} is one file already, so there is nothing to change; give --to=bf16, "
                "--shard-size or --name."
            )
    if not any(tensor.info.parameters for tensor in assignment.tensors):
        raise FileError(f"{checkpoint.source.path} holds no weights; there is nothing to convert.")
