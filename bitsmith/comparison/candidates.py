"""Candidates: the files of a comparison, opened and checked; those that are named only by a format are made.

What is made lies in the cache folder, by a key of everything that decides its bytes, and is found again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bitsmith.comparison.config import CompareConfig
from bitsmith.comparison.ledger import Ledger
from bitsmith.containers.sources import files_of
from bitsmith.errors import BitsmithError, FileError, UsageError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.models.manifests import recipe_of
from bitsmith.models.tokenizer import Tokenizer
from bitsmith.pipeline.config import QuantizeConfig
from bitsmith.pipeline.quantization import quantize_each
from bitsmith.pipeline.result import Quantized
from bitsmith.recipe.target import Target
from bitsmith.system.folders import cache_folder
from bitsmith.system.progress import Report, silent
from bitsmith.version import __version__
from bitsmith.work.leftovers import find_leftovers

_log = logging.getLogger(__name__)
RECORD = "made.json"  # beside what was made
_WORK = ".work-"  # folders of runs that are making something
_ABANDONED = 86400.0  # seconds


@dataclass(frozen=True)
class Made:
    """How a candidate of the cache was made. seconds: the time it took"""

    target: str
    method: str
    seconds: float


@dataclass(frozen=True)
class Candidate:
    """An opened file of the comparison.

    name: short and unique in the comparison
    made: None for a file that was there
    container: "gguf", "gptq", "awq", ..., or "floats"
    method: how its codes were chosen, as the file says; "" if it does not
    calibrated: names of the texts that it was calibrated on, without their folders, as the file says
    """

    name: str
    checkpoint: Checkpoint
    container: str
    method: str = ""
    made: Made | None = None
    calibrated: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.checkpoint.source.path

    @property
    def config(self) -> ModelConfig:
        """The model's shape. Raises FileError or UnsupportedError."""
        return self.checkpoint.config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises FileError or UnsupportedError."""
        return self.checkpoint.tokenizer()

    @property
    def file_bytes(self) -> int:
        """Bytes of the files of weights."""
        return sum(path.stat().st_size for path in self.checkpoint.source.files)

    @property
    def bits(self) -> float:
        """Bits of all tensors' data for each weight."""
        return _bits(self.checkpoint, linears=False)

    @property
    def linear_bits(self) -> float:
        """The same of the matrices inside of blocks alone."""
        return _bits(self.checkpoint, linears=True)


def _bits(checkpoint: Checkpoint, *, linears: bool) -> float:
    infos = list(checkpoint.source.tensors.values())
    if linears:
        names = (lambda name: name) if checkpoint.naming == "gguf" else checkpoint.names.gguf
        infos = [info for info in infos if info.rows > 1 and (names(info.name) or "").startswith("blk.")]
    weights = sum(info.parameters for info in infos)
    return 8 * sum(info.nbytes for info in infos) / weights if weights else 0.0


def open_candidate(path: str | Path, *, name: str | None = None, made: Made | None = None) -> Candidate:
    """Open a file or a folder. Raises BitsmithError."""
    checkpoint = open_checkpoint(path)
    if checkpoint.foreign is not None:
        raise checkpoint.foreign
    _ = checkpoint.config  # raises what is wrong with it
    recipe = recipe_of(checkpoint.source)
    method = str(recipe.get("method", "")) if recipe is not None else ""
    calibrated = _calibrated(recipe or {})
    return Candidate(name or checkpoint.name, checkpoint, _container(checkpoint), method, made, calibrated)


def _calibrated(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    record = recipe.get("calibration")
    source = record.get("source") if isinstance(record, Mapping) else None
    return tuple(source.split(" + ")) if isinstance(source, str) and source else ()


def _container(checkpoint: Checkpoint) -> str:
    if checkpoint.naming == "gguf":
        return "gguf"
    kinds = {info.layout.partition("/")[0] for info in checkpoint.source.tensors.values() if "/" in info.layout}
    return next(iter(sorted(kinds)), "floats")


def named_apart(candidates: list[Candidate]) -> list[Candidate]:
    """The same candidates; those whose names are alike get their targets ("gguf/q8_0") or paths for names."""
    found: list[Candidate] = []
    names = [each.name for each in candidates]
    for each in candidates:
        longer = str(each.path) if each.made is None else each.made.target
        name = each.name if names.count(each.name) == 1 else longer
        while any(name == other.name for other in found):
            name += " (again)"
        found.append(replace(each, name=name))
    return found


class Maker:
    """Makes candidates of the original, or finds them in the cache.

    original: the same model, opened
    source_sha256: hash of its files
    ledger: knows the hashes of files that did not change
    """

    def __init__(
        self, model: str | Path, original: Candidate, source_sha256: str, config: CompareConfig, ledger: Ledger
    ) -> None:
        self._model, self._name, self._source, self._config = model, original.name, source_sha256, config
        self._ledger = ledger
        self._folder = cache_folder() / "compare" / "made"
        self._plans: dict[str, Quantized] = {}

    def check(self, names: tuple[str, ...]) -> None:
        """Raise UsageError for an unknown format or method, or two that do not go together, before anything is made.

        Only formats that are not in the cache are planned. Other errors of a format come back when it is made.
        """
        for name in names:
            if not self._place(name).is_dir():
                try:
                    self.planned(name)
                except UsageError:
                    raise
                except BitsmithError as error:
                    _log.info("%s cannot be planned: %s", name, error)

    def found(self, name: str) -> Candidate | None:
        """The candidate, if it was made before. One that was changed or cannot be opened is removed."""
        folder = self._place(name)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            made = Made(str(record["target"]), str(record["method"]), float(record["seconds"]))
            candidate = open_candidate(folder / str(record["file"]), name=_shown(name), made=made)
            known = record.get("sha256")
            for path in candidate.checkpoint.files:
                if not isinstance(known, dict) or known.get(path.name) != self._ledger.sha256([path]):
                    raise FileError(f"{path.name} is not as it was written")
            return candidate
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, BitsmithError) as error:
            _log.warning("%s: what was made before cannot be used (%s); it is made again.", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            return None

    def planned(self, name: str) -> Quantized:
        """The plan of what would be made: its size and the expected time. Made once. Raises BitsmithError."""
        if name not in self._plans:
            self._plans[name] = quantize_each(self._model, [name], self._options(None, dry_run=True))[0]
        return self._plans[name]

    def make(self, name: str, report: Report = silent) -> Candidate:
        """Make the candidate. Raises BitsmithError."""
        return self.make_all((name,), report)[0]

    def make_all(
        self, names: tuple[str, ...], report: Report = silent, on_done: Callable[[Candidate], None] | None = None
    ) -> list[Candidate]:
        """Make several candidates, with one calibration for all. Those before one that fails stay."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._clear()
        work = self._work_folder(names)
        found: list[Candidate] = []

        def keep(result: Quantized) -> None:
            name = next(each for each in names if Target.parse(each) == result.target or _same(each, result.target))
            found.append(self._kept(name, result))
            if on_done is not None:
                on_done(found[-1])

        try:
            out = work if len(names) > 1 else work / _file_name(names[0])
            quantize_each(self._model, names, self._options(out), report=report, on_done=keep)
        except BaseException:
            if not any(each.kind == "work" for each in find_leftovers(work)):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
        return found

    def _work_folder(self, names: tuple[str, ...]) -> Path:
        """Where candidates are made: the same place for the same ones, so that a run which was stopped is continued.

        Another place if a run that lives is making them there.
        """
        key = hashlib.sha256("\n".join(self._place(name).name for name in names).encode()).hexdigest()[:16]
        work = self._folder / f"{_WORK}{key}"
        work.mkdir(exist_ok=True)
        if any(each.in_use for each in find_leftovers(work)):
            return Path(tempfile.mkdtemp(prefix=_WORK, dir=self._folder))
        return work

    def _kept(self, name: str, result: Quantized) -> Candidate:
        """Move what was made to its place in one step."""
        folder, made = self._place(name), Made(str(result.target), result.method, result.seconds)
        whole = Path(tempfile.mkdtemp(prefix=_WORK, dir=self._folder))
        for path in [result.out] if result.out.is_dir() else list(result.paths):
            os.replace(path, whole / path.name)
        files = open_candidate(whole / result.out.name).checkpoint.files
        hashes = {path.name: _sha256(path) for path in files}
        record: dict[str, Any] = {**vars(made), "file": result.out.name, "original": self._name, "sha256": hashes}
        (whole / RECORD).write_text(json.dumps(record), encoding="utf-8")
        try:
            os.rename(whole, folder)
        except OSError:  # another run was faster; its bytes are the same
            shutil.rmtree(whole, ignore_errors=True)
        return open_candidate(folder / result.out.name, name=_shown(name), made=made)

    def _clear(self) -> None:
        """Remove what runs left that were killed more than a day ago."""
        for path in self._folder.glob(f"{_WORK}*"):
            with suppress(OSError):
                old = time.time() - path.stat().st_mtime > _ABANDONED
                if old and not any(each.in_use for each in find_leftovers(path)):
                    shutil.rmtree(path)

    def _options(self, out: Path | None, *, dry_run: bool = False) -> QuantizeConfig:
        config = self._config
        return QuantizeConfig(
            out=out,
            force=True,  # in a folder of its own, where a run that was stopped may have left a whole file
            method=config.method,
            effort=config.effort,
            calibration=config.calibration,
            threads=config.threads,
            revision=config.revision,
            dry_run=dry_run,
        )

    def _place(self, name: str) -> Path:
        target, config = Target.parse(name), self._config
        parts = [__version__, self._source, str(target), str(config.method), str(config.effort)]
        parts += [str(each) for each in config.calibration_sources]
        parts += [_sha256(path) for path in files_of(*config.calibration_sources)]
        return self._folder / hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _same(name: str, target: Target) -> bool:
    return _shown(name).replace("_", "").lower() == _shown(str(target)).replace("_", "").lower()


def _shown(name: str) -> str:
    """A format as the table has it: "q4_k_m", "gptq/int4"."""
    return str(Target.parse(name)).removeprefix("gguf/")


def _file_name(name: str) -> str:
    target = Target.parse(name)
    return f"{target.container}-{target.name}" if target.is_folder else f"model-{target.name.upper()}.gguf"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror}); check its permissions.") from error
