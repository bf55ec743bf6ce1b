"""`tune qlora`: from options to a finished adapter over a frozen, quantized base."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bitsmith.containers.claim import Claim
from bitsmith.containers.output_names import OutputNames
from bitsmith.errors import FileError, UsageError
from bitsmith.models.adapter import CONFIG
from bitsmith.system.memory import OwnMemoryPeak, give_freed_memory_back
from bitsmith.system.options import check_words, with_signature
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.system.sizes import counted
from bitsmith.tune.base import FLOATS, Base, open_base
from bitsmith.tune.config import QloraConfig
from bitsmith.tune.examples import Examples, read_examples
from bitsmith.tune.memory import check_memory, planned_memory, returned_blocks
from bitsmith.tune.names import CHECKPOINTS
from bitsmith.tune.result import TunedAdapter, TunePlan
from bitsmith.version import __version__

if TYPE_CHECKING:
    from bitsmith.tune.batches import Row
    from bitsmith.tune.training import Data
    from bitsmith.tune.words import QloraWords

_log = logging.getLogger(__name__)
_NEEDED = ("torch", "transformers", "peft", "accelerate")
_USUAL_CONTEXT = 2048
_RUN = "run.json"  # in the checkpoints' folder: what the run was started with
_LAST_GOOD = "last-good"


def tune_qlora(
    base: str | Path,
    *,
    report: Report = silent,
    on_plan: Callable[[TunePlan], None] | None = None,
    **words: Unpack[QloraWords],
) -> TunedAdapter:
    """Train an adapter (LoRA) over a frozen, quantized base; see `bitsmith.tune.config.QloraConfig` for the options.

    base: a Hugging Face folder, a name of the hub, "reference", or a folder of bitsmith's own container
    on_plan: called before any weight is read
    Raises UsageError for a wrong call and for too little memory, FileError for bad data (with file and line),
    TensorError where the loss is not finite: the last good adapter is kept then.
    """
    check_words("tune_qlora", QloraConfig, words, further=("report", "on_plan"))
    return run_qlora(base, QloraConfig(**words), report=report, on_plan=on_plan)


with_signature(tune_qlora, QloraConfig)


@dataclass(frozen=True)
class _Job:
    """A checked run, before a weight is read."""

    config: QloraConfig
    base: Base
    base_name: str
    plan: TunePlan
    examples: Examples
    judged: Examples | None
    device: str
    dtype: str

    @property
    def out(self) -> Path:
        """The adapter's folder."""
        return Path(self.config.out)

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.out / CHECKPOINTS


def run_qlora(
    base: str | Path,
    config: QloraConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[TunePlan], None] | None = None,
) -> TunedAdapter:
    """The same as `tune_qlora`, with a configuration."""
    check_installed()
    job = _prepared(base, config, report)
    with _claimed(job.out):
        _check_out(job)
        if on_plan is not None:
            on_plan(job.plan)
        return _trained(job, report)


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """The right to write a folder, for one run at a time. Raises UsageError where another one has it, FileError."""
    if not out.parent.is_dir():
        raise FileError(f"{out}: there is no folder {out.parent}; make it first.")
    try:
        claim = Claim(OutputNames.of(out, as_folder=True))
    except OSError as error:
        raise FileError(f"{out}: cannot be written ({error.strerror or error}); choose another --out.") from error
    try:
        yield
    finally:
        claim.release()


def check_installed() -> None:
    """Raise UsageError where a package of the extra `tune` is missing."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(f"tuning needs {', '.join(missing)}: pip install 'bitsmith[tune]'.")


def _prepared(model: str | Path, config: QloraConfig, report: Report) -> _Job:
    from bitsmith.runtime.torch.device import choose_device
    from bitsmith.tune.batches import check_packing

    base = open_base(model, config.format, config.revision)
    device = choose_device(config.device)
    _check_optimizer(config)
    context = _context(base, config.context)
    tokenizer = base.checkpoint.tokenizer()
    if config.packing:
        import transformers

        check_packing(transformers.AutoConfig.from_pretrained(base.folder, trust_remote_code=False))
    examples = read_examples(config.data_names, tokenizer, context=context, option="--data", report=report)
    judged = (
        read_examples(config.eval_names, tokenizer, context=context, option="--eval-data", report=report)
        if config.eval_names
        else None
    )
    dtype = config.dtype or ("float32" if device == "cpu" else "bfloat16")
    rows = _rows(examples, context, config.packing)
    planned = planned_memory(base, config, max(map(len, rows)), dtype=FLOATS.get(base.format, dtype), device=device)
    check_memory(planned, device, force=config.force)
    epoch = math.ceil(math.ceil(len(rows) / config.batch) / config.accumulate)
    plan = TunePlan(
        base=base.checkpoint.name,
        format=base.format,
        records=examples.records,
        examples=len(examples.examples),
        rows=len(rows),
        tokens=examples.tokens,
        learned=examples.learned,
        context=context,
        steps=config.steps or max(1, round((1.0 if config.epochs is None else config.epochs) * epoch)),
        memory=None if planned is None else planned.total,
        notes=(
            *_rank_notes(base, config.rank),
            *_cut_notes(examples, context),
            *(() if judged is None else _judged_notes(examples, judged, context)),
        ),
    )
    name = str(base.folder) if Path(model).expanduser().exists() or str(model) == "reference" else str(model)
    return _Job(config, base, name, plan, examples, judged, device, dtype)


def _rows(examples: Examples, context: int, packing: bool) -> list[Row]:
    from bitsmith.tune.batches import rows_of

    return rows_of(examples.examples, context=context, packing=packing)


def _check_optimizer(config: QloraConfig) -> None:
    if config.optimizer != "adamw" and find_spec("bitsandbytes") is None:
        raise UsageError(f"--optimizer={config.optimizer}: needs bitsandbytes: pip install bitsandbytes.")


def _context(base: Base, wanted: int | None) -> int:
    shape = base.checkpoint.shape
    text = base.checkpoint.hf_config.get("text_config", base.checkpoint.hf_config)
    known = text.get("max_position_embeddings") if isinstance(shape, Exception) else shape.context
    limit = known if isinstance(known, int) and known > 0 else None
    if wanted is not None and limit is not None and wanted > limit:
        raise UsageError(f"--context={wanted}: {base.checkpoint.name} takes at most {limit} tokens; give no more.")
    return wanted or min(_USUAL_CONTEXT, limit or _USUAL_CONTEXT)


def _rank_notes(base: Base, rank: int) -> tuple[str, ...]:
    """A note where a matrix has fewer rows or columns than the rank."""
    from bitsmith.models.arch.block import linear_shapes

    if isinstance(base.checkpoint.shape, Exception):
        return ()
    shapes = linear_shapes(base.checkpoint.config, 0)
    sides = {name: min(sides) for name, sides in shapes.items() if "_exps" not in name and "gate_inp" not in name}
    least = min(sides, key=sides.__getitem__, default="")
    if not least or rank <= sides[least]:
        return ()
    return (f"--rank={rank} is more than the smaller side of {least}, {sides[least]}: no change of it needs so many",)


def _cut_notes(examples: Examples, context: int) -> tuple[str, ...]:
    found = []
    if examples.cut:
        whole = counted(len(examples.examples) + examples.dropped, "example")
        found.append(
            f"{examples.name}: {examples.cut} of {whole} did not fit into {context} tokens and lost the end; a longer "
            "--context keeps it"
        )
    if examples.dropped:
        found.append(
            f"{examples.name}: {counted(examples.dropped, 'example')} left out, because the answer began behind the cut"
        )
    return tuple(found)


def _judged_notes(examples: Examples, judged: Examples, context: int) -> tuple[str, ...]:
    known = {each.ids.tobytes() for each in examples.examples}
    both = sum(each.ids.tobytes() in known for each in judged.examples)
    seen = f"{both} of {counted(len(judged.examples), 'example')} of --eval-data are in --data too"
    return (*_cut_notes(judged, context), *((f"{seen}: their loss says nothing of other text",) if both else ()))


def _check_out(job: _Job) -> None:
    """Check the place of the result, and note what the run is started with. Raises UsageError, FileError."""
    out, config = job.out, job.config
    present = out.is_dir() and any(out.iterdir())
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out is a folder.")
    if config.resume:
        _check_same(job)
        return
    for name in (*config.data_names, *config.eval_names, job.base.folder):
        if Path(name).expanduser().resolve().is_relative_to(out.resolve()):
            raise UsageError(f"--out={out} holds {name}, which the run reads; choose another --out.")
    if present and not config.force:
        raise UsageError(f"{out} exists already; give --resume to go on, --force to replace it, or another --out.")
    if present and not ((out / CONFIG).is_file() or (job.checkpoints / _RUN).is_file()):
        raise UsageError(f"{out} holds no adapter; --force would delete it. Choose another --out.")
    shutil.rmtree(out, ignore_errors=True)
    job.checkpoints.mkdir(parents=True)
    (job.checkpoints / _RUN).write_text(json.dumps(_started(job), indent=2), encoding="utf-8")


def _started(job: _Job) -> dict[str, Any]:
    """What decides the adapter; a run that goes on must have the same."""
    config = job.config
    kept = ("rank", "alpha", "dropout", "packing", "batch", "accumulate", "learning_rate", "schedule", "warmup")
    return {
        "version": __version__,
        "base": job.base.checkpoint.name,
        "format": job.base.format,
        "data": job.examples.sha256,
        "context": job.plan.context,
        "steps": job.plan.steps,
        "dtype": job.dtype,
        "targets": list(config.target_names),
        **{name: getattr(config, name) for name in (*kept, "optimizer", "seed")},
    }


def _check_same(job: _Job) -> None:
    path = job.checkpoints / _RUN
    if not path.is_file():
        raise UsageError(f"{job.out} holds no run that could go on; leave out --resume.")
    before = json.loads(path.read_text(encoding="utf-8"))
    for name, value in _started(job).items():
        if before.get(name) != value:
            raise UsageError(
                f"{job.out} was started with {name} {before.get(name)!r}, and now it is {value!r}; give the same "
                "options and data, or start anew in another --out."
            )


def _check_same_base(job: _Job, found: Mapping[str, str]) -> None:
    """Note the base's hashes beside the checkpoints; raise FileError where a run goes on over other weights."""
    from bitsmith.tune.adapters import write_whole

    path = job.checkpoints / _RUN
    started = json.loads(path.read_text(encoding="utf-8"))
    before = started.setdefault("base_tensors", dict(found))
    if before != dict(found):
        raise FileError(
            f"{job.base.folder}: the weights are not those that the run in {job.out} was started with; bring them "
            "back, or start anew in another --out."
        )
    write_whole(path, json.dumps(started, indent=2).encode())


def _trained(job: _Job, report: Report) -> TunedAdapter:
    import torch

    from bitsmith.tune import training  # noqa: F401 - what is imported here is no memory of the training
    from bitsmith.tune.base import model_class

    config, started = job.config, time.monotonic()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model_class(job.base)
    if job.device == "cpu":
        give_freed_memory_back(returned_blocks(job.dtype))
    with OwnMemoryPeak() as peak:
        made = _adapter(job, report)
        memory = peak.bytes if job.device == "cpu" else int(torch.cuda.max_memory_allocated(job.device))
    return TunedAdapter(
        plan=job.plan,
        out=job.out,
        modules=made.modules,
        trained=made.trained,
        loss_before=made.before,
        loss_after=made.after,
        seconds=time.monotonic() - started,
        memory=memory,
        history=made.history,
        files=_further(job, made.history),
    )


@dataclass(frozen=True)
class _Made:
    """What a training gave beside its files."""

    modules: tuple[str, ...]
    trained: int
    before: float | None
    after: float | None
    history: list[dict[str, Any]]


def _adapter(job: _Job, report: Report) -> _Made:
    """Train and write the adapter."""
    import torch

    from bitsmith.tune.adapters import Shape, adapted_modules, rounded, save_adapter, trained, with_adapters
    from bitsmith.tune.base import load_base
    from bitsmith.tune.training import NotFiniteError, held_out_loss, train

    config = job.config
    report(Progress("load", 0, 0, "", job.base.checkpoint.name))
    model = load_base(job.base, dtype=job.dtype, device=job.device)
    if job.device == "cpu":
        give_freed_memory_back(returned_blocks(job.dtype))
    modules = adapted_modules(model, config.target_names)
    shape = Shape(config.rank, config.alpha or 2.0 * config.rank, config.dropout, config.target_names)
    torch.manual_seed(config.seed)
    model = with_adapters(model, modules, shape, str(job.base.folder))
    record = _record(job, modules, report)
    _check_same_base(job, record["base_tensors"])
    data = _data(job)
    before = held_out_loss(model, data.judged, data.collator, config.batch) if data.judged else None
    dtype = torch.float32 if job.dtype == "float32" and job.base.format == "f32" else torch.bfloat16
    try:
        history = train(model, data, config, job.checkpoints, job.plan.steps, report)
    except NotFiniteError as error:
        kept = job.out / _LAST_GOOD
        model.peft_config["default"].base_model_name_or_path = job.base_name
        save_adapter(model, kept, dtype, record | {"stopped_in_step": error.step})
        raise NotFiniteError(f"{error.message}. The last good adapter is kept in {kept}.", error.step) from error
    rounded(model, dtype)
    after = held_out_loss(model, data.judged, data.collator, config.batch) if data.judged else None
    model.peft_config["default"].base_model_name_or_path = job.base_name
    count = sum(value.numel() for value in trained(model).values())
    save_adapter(model, job.out, dtype, record | {"loss_before": before, "loss_after": after, "history": history})
    return _Made(tuple(modules), count, before, after, history)


def _data(job: _Job) -> Data:
    from bitsmith.tune.batches import Collator
    from bitsmith.tune.training import Data

    tokenizer, context = job.base.checkpoint.tokenizer(), job.plan.context
    filler = tokenizer.vocabulary.special.get("pad", tokenizer.eos or 0)
    packing = job.config.packing
    judged = [] if job.judged is None else _rows(job.judged, context, packing)
    return Data(_rows(job.examples, context, packing), judged, Collator(filler, packing))


def _record(job: _Job, modules: list[str], report: Report) -> dict[str, Any]:
    """What bitsmith keeps beside an adapter: the run's options, and the base by the hashes of its adapted layers."""
    from bitsmith.models.adapter import tensor_hashes

    report(Progress("hash", 0, 0, "", job.base.checkpoint.name))
    names = [f"{name}.weight" for name in modules]
    hashes = tensor_hashes(job.base.checkpoint, names)
    return {**_started(job), "data_name": job.examples.name, "base_tensors": hashes}


def _further(job: _Job, history: list[dict[str, Any]]) -> tuple[Path, ...]:
    from bitsmith.tune.loss_plot import plot_losses

    picture = job.out / "loss.png"
    found = (picture,) if plot_losses(history, picture) else ()
    if job.config.to is None:
        return found
    from bitsmith.tune.gguf_lora import convert_adapter

    return (*found, convert_adapter(job.out, base=job.base.folder, out=job.out / "adapter.gguf", force=True))
