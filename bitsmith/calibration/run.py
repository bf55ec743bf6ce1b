"""A calibration from its options: reads and checks the source first, runs the pass later."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from bitsmith.calibration.config import CalibrationConfig, ImatrixConfig
from bitsmith.calibration.cost import Cost, calibration_cost
from bitsmith.calibration.footprint import Run
from bitsmith.calibration.imatrix import imatrix_file, is_imatrix_name
from bitsmith.calibration.importance import Importance, from_file, to_imatrix
from bitsmith.calibration.method import Method
from bitsmith.calibration.need import check_pass
from bitsmith.calibration.parts import PART_TOKENS
from bitsmith.calibration.pieces import Pieces
from bitsmith.calibration.sources import SELF, CalibrationTokens, Request, own_text, read_tokens
from bitsmith.containers.destination import Destination, followed
from bitsmith.containers.layout import FileLayout
from bitsmith.containers.output import OutputFiles
from bitsmith.containers.reservation import Reservation
from bitsmith.containers.sources import files_of
from bitsmith.errors import UsageError, Words, quoted
from bitsmith.models.arch.tensors import expected_tensors
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.quant.tensor import TensorInfo
from bitsmith.recipe.calibration_record import UNKNOWN_SHA256, CalibrationRecord
from bitsmith.recipe.coverage import Coverage
from bitsmith.system.machine import cores
from bitsmith.system.options import check_arguments, check_words, with_signature
from bitsmith.system.progress import Report, silent
from bitsmith.system.tables import html_table
from bitsmith.work.ending import finished, keep_ending
from bitsmith.work.folder import About, WorkFolder
from bitsmith.work.key import work_key

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from bitsmith.calibration.collect import Calibration, Search, Wanted
    from bitsmith.calibration.words import ImatrixWords


@dataclass(frozen=True)
class Prepared:
    """A calibration with a checked source, before its pass.

    record: the record for the manifest; its hash is zeros until the model has generated its own text
    warnings: warnings for the user
    request: None for an importance file
    tokens: None for text that the model generates
    ready: the importance, if the source is an importance file
    told: notes for the user before the pass: what is continued
    """

    checkpoint: Checkpoint
    record: CalibrationRecord
    warnings: tuple[str, ...] = ()
    request: Request | None = None
    tokens: CalibrationTokens | None = None
    ready: Importance | None = None
    told: tuple[str, ...] = ()

    def run(
        self,
        *,
        wanted: Wanted | None = None,
        searches: Sequence[Search] = (),
        rounded: bool = False,
        memory: int | None = None,
        threads: int | None = None,
        device: str = "cpu",
        work: tuple[WorkFolder, str] | None = None,
        pieces: Pieces | None = None,
        report: Report = silent,
    ) -> Calibration:
        """The statistics pass, see `bitsmith.calibration.collect.collect`.

        Raises UsageError for an importance file, which has sums of squares only.
        """
        if self.request is None:
            raise UsageError(
                f"--calibration={quoted(self.record.source)}: an importance file holds no activations; this needs a "
                "text."
            )
        from bitsmith.calibration.collect import collect

        folder = None if work is None else work[0]
        tokens = self.read(threads=threads, work=folder, report=report).tokens
        assert tokens is not None
        return collect(
            self.checkpoint,
            tokens,
            wanted=wanted,
            searches=searches,
            rounded=rounded,
            memory=memory,
            threads=threads,
            device=device,
            work=work,
            pieces=pieces,
            report=report,
        )

    def read(self, *, threads: int | None = None, work: WorkFolder | None = None, report: Report = silent) -> Prepared:
        """The same with its tokens. If the model writes its own text, it does so now.

        work: where the text is kept while it is written; None: nowhere
        """
        if self.request is None or self.tokens is not None:
            return self
        from bitsmith.calibration.generated import generate_tokens
        from bitsmith.runtime.torch.model import load_torch_model

        model = load_torch_model(self.checkpoint, threads=threads, report=report)
        tokens = generate_tokens(self.request, model, work=work, report=report)
        return replace(self, tokens=tokens, record=tokens.record)

    def trainable(self, most: int) -> int:
        """Number of tokens that a training gets: those of the calibration, and up to `most` if the texts have more."""
        if self.tokens is None or self.request is None:
            return self.record.tokens  # text that the model writes
        return max(self.record.tokens, min(most, self.tokens.available) // self.request.context * self.request.context)

    def longer(self, tokens: int, report: Report = silent) -> np.ndarray:
        """Windows of so many tokens of the same texts, int64 [windows, context], see `trainable`."""
        assert self.tokens is not None
        own, request = self.tokens.tokens, self.request
        if request is None or tokens <= own.size:
            return own
        wanted = replace(request, windows=tokens // request.context)
        shape = self.checkpoint.config
        return read_tokens(wanted, self.checkpoint.tokenizer(), vocab=shape.vocab, report=report).tokens


def prepare(
    checkpoint: Checkpoint,
    config: CalibrationConfig | None = None,
    sources: Sequence[str | Path] | None = None,
    *,
    report: Report = silent,
) -> Prepared:
    """Read and check a calibration's source. Reads no weights.

    config: its tokens, context, seed and experts, see `Request.of`; None for the defaults
    sources: "self" alone, an importance file alone (.gguf, .dat), or what `read_tokens` takes; empty: the built-in
        text; None: those of `config`
    Raises UsageError, FileError or UnsupportedError for every problem that is visible before the pass.
    """
    checkpoint = checkpoint.laid_out("gguf")  # as importance files are
    options = config or CalibrationConfig()
    sources = options.sources if sources is None else sources
    alone = [str(name) for name in sources if name == SELF or is_imatrix_name(Path(name))]
    if alone and len(sources) > 1:
        what = "the model's own text" if alone[0] == SELF else "an importance file"
        raise UsageError(f"--calibration={quoted(alone[0])}: {what} cannot be joined with others; give it alone.")
    if alone and alone[0] != SELF:
        ready = from_file(Path(alone[0]).expanduser(), own_infos(checkpoint))
        return Prepared(checkpoint, ready.record, ready=ready)
    shape = checkpoint.config
    require_torch()
    every, warnings = options.calibration_all_experts, tuple[str, ...]()
    if every and shape.experts is None:
        every, warnings = False, ("--calibration-all-experts changes nothing: the model has no experts",)
    tokens, context, seed = options.calibration_tokens, options.calibration_context, options.seed
    request = Request.of(sources, limit=shape.context, tokens=tokens, context=context, seed=seed, all_experts=every)
    if alone:
        total = request.windows * request.context
        record = CalibrationRecord(own_text(checkpoint.name), UNKNOWN_SHA256, total, request.context, seed, every)
        return Prepared(checkpoint, record, warnings, request=request)
    read = read_tokens(request, checkpoint.tokenizer(), vocab=shape.vocab, report=report)
    _log.info("calibration: %d windows of %d tokens of %s", *read.tokens.shape, read.source)
    warnings += read.notes
    if len(read.tokens) < request.windows and tokens is not None:
        warnings += (
            f"{read.source} has {read.tokens.size:,} tokens in whole windows, fewer than the requested {tokens:,}",
        )
    return Prepared(checkpoint, read.record, warnings, request=request, tokens=read)


def own_infos(checkpoint: Checkpoint) -> Iterable[TensorInfo]:
    """The model's tensors under GGUF names; under the file's own if the family is unknown."""
    if isinstance(checkpoint.shape, Exception):
        return checkpoint.source.tensors.values()
    return [TensorInfo(name, shape, "", 0) for name, shape in expected_tensors(checkpoint.config).items()]


def _pass_cost(prepared: Prepared, memory: int | None) -> Cost:
    """What the statistics pass costs."""
    record, config = prepared.record, prepared.checkpoint.config
    return calibration_cost(config, Method("nearest"), "fast", record, memory=memory)


def check_importance_file(config: CalibrationConfig) -> None:
    """Raise UsageError for options that only a text can use, if the calibration is an importance file."""
    files = [name for name in config.sources if is_imatrix_name(Path(name))]
    if files and config.unused_with_a_file:
        raise UsageError(
            f"{Path(files[0]).name} is an importance file, which is read and not measured again; leave out "
            f"{' and '.join(config.unused_with_a_file)}."
        )


def require_torch() -> None:
    """Raise UsageError if torch is not installed."""
    if find_spec("torch") is None:
        raise UsageError(
            "calibrating runs the model, which needs torch: pip install 'bitsmith[torch]'; or give an importance file."
        )


@dataclass(frozen=True, repr=False)
class ImatrixResult:
    """An importance file that was written.

    entries: number of tensors
    windows: number of windows of text
    coverage: tokens that each expert saw; None for a model without experts, or for a converted file
    """

    model: str
    out: Path
    record: CalibrationRecord
    entries: int
    windows: int
    size: int
    warnings: tuple[str, ...] = ()
    coverage: Coverage | None = None

    def __repr__(self) -> str:
        """One line."""
        seen = f"{self.record.tokens:,} tokens of {self.record.source!r}"
        return f"<ImatrixResult {str(self.out)!r}: {self.entries} matrices, {seen}>"

    def _repr_html_(self) -> str:
        rows = [("file", self.out), ("matrices", self.entries), ("text", self.record.source)]
        return html_table(f"importance of {self.model}", [*rows, ("tokens", f"{self.record.tokens:,}")])

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "out": str(self.out),
            "bytes": self.size,
            "entries": self.entries,
            "windows": self.windows,
            "calibration": self.record.to_dict(),
            "experts": None if self.coverage is None else self.coverage.to_dict(),
            "warnings": list(self.warnings),
        }


def make_imatrix(model: str | Path, *, report: Report = silent, **words: Unpack[ImatrixWords]) -> ImatrixResult:
    """Measure which matrix columns of a model matter, and write an importance file.

    llama-quantize and `quantize --calibration` read the file. The other keywords are the options of `bitsmith
    imatrix`, see `ImatrixConfig`; `out` must be given. If `calibration` is an importance file, it is converted to the
    format of `out`. Raises BitsmithError.
    """
    check_words("imatrix", ImatrixConfig, words, further=("report",))
    return write_imatrix(model, ImatrixConfig(**words), report=report)


with_signature(make_imatrix, ImatrixConfig)


def write_imatrix(
    model: str | Path,
    config: ImatrixConfig,
    *,
    report: Report = silent,
    on_plan: Callable[[Prepared, Cost], None] | None = None,
) -> ImatrixResult:
    """The same as `make_imatrix`, with a configuration.

    on_plan: called before the pass over the text with what it costs
    """
    from bitsmith.calibration import spread
    from bitsmith.calibration.imatrix import Imatrix, read_imatrix

    check_arguments(write_imatrix, {"model": model})
    memory, threads, force = config.memory_bytes, config.threads, config.force
    path = followed(Path(config.out), force=force)
    imatrix_file(Imatrix({}, (), 0, 0), path.name)  # fails here if the name has a wrong ending
    checkpoint = open_checkpoint(model, revision=config.revision)
    check_importance_file(config)
    prepared = prepare(checkpoint, config, report=report)
    _check_executor(config, prepared)
    place = Destination(path, [FileLayout(path.name, b"", (), 0)])  # its size is not known yet
    sources = [*checkpoint.files, *files_of(*config.sources)]
    work = _work_on_imatrix(place, prepared, config, sources)

    def is_finished(place: Destination) -> bool:
        state = finished(work, place)
        if state is not None:
            state.close()
        return state is not None

    with Reservation([place], sources=sources, force=force, finished=is_finished) as reservation, work:
        there = is_finished(place)
        if prepared.ready is not None:
            content, record = read_imatrix(Path(config.sources[0]).expanduser()), prepared.record
            coverage = None
        else:
            from bitsmith.runtime.torch.device import choose_device

            if on_plan is not None:
                on_plan(replace(prepared, told=work.notes()), _pass_cost(prepared, memory))
            device = choose_device(config.device) if config.executor is None else "cpu"
            if not force:
                one = Run(checkpoint.config, Method("nearest"), "normal", _at_once(prepared, config), memory=memory)
                check_pass(one, threads or cores())
            found = _passed(prepared, config, device, work, report)
            content, record, coverage = to_imatrix(found), found.record, _told(found.coverage)
        layout, data = imatrix_file(content, path.name)
        if not there:
            with OutputFiles(replace(place, layouts=[layout]), reservation) as output:
                for name, values in data.items():
                    output.write(name, "data", values.reshape(-1).view(np.uint8).data)
                output.commit([layout], report, verified=lambda marks: keep_ending(work, marks, {}, {}))
        if config.work is not None:
            spread.store_of(config, work).remove()
    warnings = (*prepared.warnings, *([Words(coverage.note())] if coverage is not None and coverage.starved else []))
    warnings += work.take_words()
    entries, windows = len(content.entries), content.chunks
    return ImatrixResult(checkpoint.name, path, record, entries, windows, layout.size, warnings, coverage)


def _check_executor(config: ImatrixConfig, prepared: Prepared) -> None:
    """Raise UsageError if several workers cannot share the pass."""
    from bitsmith.calibration import spread

    if config.executor is not None:
        if prepared.ready is not None:
            raise UsageError(f"--executor={config.executor}: an importance file is only converted; leave it out.")
        spread.check(config, prepared.checkpoint)


def _at_once(prepared: Prepared, config: ImatrixConfig) -> CalibrationRecord:
    """The record with the tokens that one process has in hand at a time."""
    record = prepared.record
    tokens = record.tokens if config.executor is None else min(record.tokens, max(PART_TOKENS, record.context))
    return replace(record, tokens=tokens)


def _passed(prepared: Prepared, config: ImatrixConfig, device: str, work: WorkFolder, report: Report) -> Calibration:
    """The statistics pass, here or on the workers of an executor."""
    memory, threads = config.memory_bytes, config.threads
    if config.executor is None:
        kept = (work, "pass")
        return prepared.run(rounded=True, memory=memory, threads=threads, device=device, work=kept, report=report)
    from bitsmith.calibration.spread import collect_spread

    tokens = prepared.read(threads=threads, work=work, report=report).tokens
    assert tokens is not None
    found, notes = collect_spread(prepared.checkpoint, tokens, config, work, report)
    work.words += notes
    return found


def _work_on_imatrix(
    place: Destination, prepared: Prepared, config: ImatrixConfig, sources: Sequence[str | Path]
) -> WorkFolder:
    """Where the statistics are kept until the file is written."""
    recipe = {"imatrix": prepared.record.to_dict(), "name": place.target.name, "device": config.device}
    about = About("imatrix", f"importance of {prepared.checkpoint.name}")
    return WorkFolder(place.names, work_key(sources, recipe), about, fresh=config.fresh)


def _told(coverage: Coverage | None) -> Coverage | None:
    """The coverage with what it means for the experts that saw too few tokens."""
    if coverage is None or coverage.every:
        fallback = "the statistics are of all tokens for every expert"
    else:
        fallback = "a longer text, or --calibration-all-experts, gives them better statistics"
    return None if coverage is None else replace(coverage, fallback=fallback)
