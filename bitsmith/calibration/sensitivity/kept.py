"""What was measured of a model, kept in the user's cache folder, so that a second budget takes seconds.

Figures of another program are never used: its version, the core's build and the code that decides costs are part of
the key.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from bitsmith.containers.bounded_json import parse_json
from bitsmith.errors import BitsmithError
from bitsmith.models.checkpoint import Checkpoint
from bitsmith.system.folders import cache_folder
from bitsmith.work.key import program

VERSION = 2
_ROOMS = ("calibration", "quant", "runtime", "recipe", "pipeline")  # whose code decides costs
_log = logging.getLogger(__name__)


class Kept:
    """A JSON object in a file of its own. A file that cannot be read counts as empty; one that cannot be written stays
    away, with a word in the log: everything in it can be measured again."""

    def __init__(self, key: Mapping[str, Any]) -> None:
        """key: everything that the measurements depend on"""
        name = hashlib.sha256(json.dumps({**key, "version": VERSION}, sort_keys=True).encode()).hexdigest()[:32]
        self.path = cache_folder() / "sensitivity" / f"{name}.json"
        self._values: dict[str, Any] = {}
        try:
            if self.path.is_file():
                self._values = _object(parse_json(self.path.read_bytes(), self.path))
        except (BitsmithError, OSError) as error:
            _log.warning("%s: %s It is measured again.", self.path, error)

    def get(self, name: str) -> Any:
        """A value; None if it is not there."""
        return self._values.get(name)

    def put(self, name: str, value: Any) -> None:
        """Keep a value. The file is replaced in one step."""
        self._values[name] = value
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.path.parent, prefix=f".{self.path.name}-", suffix=".part", delete=False
            ) as file:
                json.dump(self._values, file)
            os.replace(file.name, self.path)
        except OSError as error:
            _log.warning("%s cannot be written (%s); it will be measured again.", self.path, error.strerror)
            with suppress(OSError, NameError):
                Path(file.name).unlink(missing_ok=True)


def program_key() -> dict[str, Any]:
    """For keys of figures that the program's own code decides: versions, the core's build, and the code."""
    return {**program(), "code": _code_sha256(Path(__file__).parents[2])}


@cache
def _code_sha256(package: Path) -> str:
    """The hash of the rooms' code. package: the folder of `bitsmith`"""
    digest = hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (package / room).rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def model_sha256(checkpoint: Checkpoint) -> str:
    """The hash of all weights and the configuration: of the names and bytes of a model's files.

    What was hashed is kept with the size and the time of each file, and not read again until they change.
    """
    kept = Kept({"what": "hashes of files"})
    digest = hashlib.sha256()
    for path in sorted(checkpoint.files, key=lambda each: each.name):
        found = path.stat()
        place = f"{os.path.realpath(path)} {found.st_size} {found.st_mtime_ns} {found.st_ino}"
        known = kept.get(place)
        if not isinstance(known, str):
            with path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
            kept.put(place, known)
        digest.update(f"{path.name} {known}\n".encode())
    return digest.hexdigest()


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
