"""`hand_over`: writes what a runtime needs beside a file, says how it is started, and proves that it works there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from bitsmith.containers.destination import folder_for
from bitsmith.containers.output import write_file
from bitsmith.errors import FileError, UsageError, in_flags, quoted
from bitsmith.handover.checking import checked
from bitsmith.handover.config import HandoverConfig, HandoverWords
from bitsmith.handover.runtime import Prepared, Runtime
from bitsmith.handover.runtimes import find_runtime
from bitsmith.handover.subject import Subject, open_subject
from bitsmith.handover.verdict import Check
from bitsmith.models.naming import output_stem
from bitsmith.system.options import check_words, with_signature
from bitsmith.system.progress import Progress, Report, silent
from bitsmith.version import __version__

RECEIPT = "receipt.json"
UNPROVEN = (
    "its weights could not be checked against anything, as the file has no manifest: give `--original` and the model "
    "that it was made from"
)
HASHES = "model_files"  # the receipt's entry with the SHA-256 of every file of the model
_PIECE = 1 << 22  # bytes read at once


@dataclass(frozen=True)
class HandedOver:
    """A finished handover.

    out: the folder with what the runtime needs, and the receipt
    command: starts the runtime
    checks: what was compared; empty without a check
    versions: of the runtime
    """

    runtime: str
    path: Path
    out: Path
    command: str
    notes: tuple[str, ...]
    files: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    versions: Mapping[str, str] | None = None

    @property
    def good(self) -> bool | None:
        """Whether every check passed; None if nothing was checked."""
        return all(check.passed is not False for check in self.checks) if self.checks else None

    @property
    def compared_with(self) -> tuple[str, ...]:
        """What the weights were compared with beside the file itself: "manifest", "original"; none without a check."""
        names = {"file": "manifest", "original: divergence": "original"}
        return tuple(names[check.name] for check in self.checks if check.name in names and check.passed is not None)

    @property
    def verdict(self) -> str:
        """The result of the check in a sentence; "" if nothing was checked."""
        if not self.checks:
            return ""
        if self.failed:
            return f"not good: {', '.join(check.name for check in self.failed)}"
        versions = ", ".join(f"{name} {value}" for name, value in (self.versions or {}).items())
        return f"checked with {versions}" + ("" if self.compared_with else f"; {UNPROVEN}")

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "runtime": self.runtime,
            "path": str(self.path),
            "out": str(self.out),
            "command": self.command,
            "notes": list(self.notes),
            "files": list(self.files),
            "good": self.good,
            "verdict": in_flags(self.verdict),
            "weights_compared_with": list(self.compared_with),
            "versions": dict(self.versions or {}),
            "checks": [check.to_dict() for check in self.checks],
        }


def hand_over(
    model: str | Path,
    *,
    report: Report = silent,
    announce: Callable[[str], None] = lambda text: None,
    **words: Unpack[HandoverWords],
) -> HandedOver:
    """Give a file to a runtime. The other keywords are the options of `bitsmith handover`.

    model: a GGUF file or a folder
    announce: called with what is done now, in a few words
    Raises UnsupportedError for a file that the runtime cannot hold, and for a runtime that is not installed where it
    is to be checked. A check that fails raises nothing: see `HandedOver.good`.
    """
    check_words("hand_over", HandoverConfig, words, further=("report", "announce"))
    config = HandoverConfig(**words)
    return run_handover(model, config, report=report, announce=announce)


with_signature(hand_over, HandoverConfig)


def run_handover(
    model: str | Path,
    config: HandoverConfig,
    *,
    report: Report = silent,
    announce: Callable[[str], None] = lambda text: None,
) -> HandedOver:
    """The same as `hand_over`, with its options as one value."""
    runtime = find_runtime(config.runtime)
    subject = open_subject(model)
    runtime.check_holds(subject)
    given = Path(config.out) if config.out is not None else Path(f"{output_stem(subject.name)}-{runtime.name}")
    out = given.absolute()
    if out.is_file():
        raise UsageError(f"--out={quoted(given)}: this is a file; give a folder.")
    prepared = runtime.prepare(subject, out)
    versions, checks = dict[str, str](), list[Check]()
    if config.check:
        versions, checks = checked(
            runtime,
            subject,
            python=config.python,
            original=config.original,
            seconds=config.timeout,
            report=report,
            announce=announce,
        )
    found = HandedOver(
        runtime.name,
        subject.path,
        out,
        prepared.line,
        prepared.notes,
        (*prepared.files, *prepared.links, RECEIPT),
        tuple(checks),
        versions,
    )
    _write(subject, runtime, prepared, found, force=config.force, report=report)
    return found


def _write(
    subject: Subject, runtime: Runtime, prepared: Prepared, found: HandedOver, *, force: bool, report: Report
) -> None:
    receipt = {
        "bitsmith": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        HASHES: {each.name: sha256_of(each, report) for each in subject.checkpoint.files if each.name != RECEIPT},
        **_without_places(found),
    }
    extras = {**prepared.files, RECEIPT: (json.dumps(receipt, indent=2, ensure_ascii=False) + "\n").encode()}
    with folder_for(found.out):
        taken = next((found.out / name for name in (*extras, *prepared.links) if (found.out / name).exists()), None)
        if taken is not None and not force:
            raise UsageError(f"{taken} exists; give --force to replace it, or another --out.")
        for name, path in prepared.links.items():
            _link(path, found.out / name)
        for name, data in extras.items():
            write_file(found.out / name, data, sources=subject.checkpoint.files, force=force)


def _without_places(found: HandedOver) -> dict[str, Any]:
    """The values for a receipt that leaves this machine: files and folders by their names alone."""
    names = {str(place): place.name for place in (found.out, found.path)}
    longest = sorted(names, key=len, reverse=True)

    def named(value: Any) -> Any:
        if isinstance(value, str):
            for place in longest:
                value = value.replace(place, names[place])
            return value
        if isinstance(value, Mapping):
            return {key: named(each) for key, each in value.items()}
        return [named(each) for each in value] if isinstance(value, list | tuple) else value

    return dict(named(found.to_dict()))


def _link(path: Path, place: Path) -> None:
    """Another name for a file, or a copy where the disk has no such names. It appears whole."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path, place)
        except OSError:
            part = place.with_name(f".{place.name}.part")
            shutil.copyfile(path, part)
            part.replace(place)
    except OSError as error:
        raise FileError(f"{place}: cannot be written ({error.strerror or error}); choose another --out.") from error


def sha256_of(path: Path, report: Report = silent) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            done += len(piece)
            report(Progress("hash", done, size, "B", path.name))
    return digest.hexdigest()
