"""The plan of a run as plain values, from which workers make it again: they know the model by its name alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from bitsmith.errors import FileError
from bitsmith.models.checkpoint import Checkpoint, open_checkpoint
from bitsmith.models.for_workers import files_of
from bitsmith.recipe.calibration_record import CalibrationRecord
from bitsmith.recipe.copies import SAME, as_conversion, assign_copy
from bitsmith.recipe.plan import Assignment, Plan
from bitsmith.recipe.planners import assign
from bitsmith.recipe.recipe import QUANTIZE, PlanOptions
from bitsmith.recipe.target import Target

_FIELDS = ("source", "source_layout", "order", "copied", "together", "own", "outside")  # of tensors, beside their info


@dataclass(frozen=True)
class Description:
    """A plan as a worker can make it again.

    model, revision: as the user gave them
    to, options, command: of its assignment
    input_absmax: see `Plan.of`
    """

    model: str
    revision: str | None
    to: str
    options: Mapping[str, Any]
    command: str
    input_absmax: Mapping[str, float] | None

    @classmethod
    def of(cls, plan: Plan, model: str, revision: str | None, input_absmax: Mapping[str, float] | None) -> Description:
        """The description of a plan. input_absmax: with which it was made"""
        assignment = plan.assignment
        absmax = None if input_absmax is None else {name: float(seen) for name, seen in input_absmax.items()}
        return cls(model, revision, str(plan.target), asdict(assignment.options), assignment.command, absmax)

    def to_dict(self, plan: Plan) -> dict[str, Any]:
        """Plain values for JSON, with what a worker compares with its own plan."""
        return {**vars(self), "plan": digest_of(plan), "files": files_of(plan.checkpoint)}

    def plan(self) -> Plan:
        """The plan. Raises as opening a model and as `assign`."""
        checkpoint = open_checkpoint(self.model, revision=self.revision)
        return Plan.of(self._assignment(checkpoint), input_absmax=self.input_absmax)

    def _assignment(self, checkpoint: Checkpoint) -> Assignment:
        values: dict[str, Any] = dict(self.options)
        record = values["calibration"]
        values["calibration"] = None if record is None else CalibrationRecord(**record)
        values |= {name: tuple(values[name]) for name in ("rules", "keep")}
        options = PlanOptions(**values)
        target = Target(*self.to.split("/", 1))
        found = assign_copy(checkpoint, options) if target.name == SAME else assign(checkpoint, target, options)
        return found if self.command == QUANTIZE else as_conversion(found)


def digest_of(plan: Plan) -> str:
    """A hash of what a plan does with each tensor."""
    digest = hashlib.sha256()
    for each in plan.tensors:
        known = [str(vars(each)[name]) for name in _FIELDS]
        digest.update(repr((each.info, known, each.inputs, str(dict(each.parts)))).encode())
    return digest.hexdigest()


@lru_cache(maxsize=2)
def plan_of(text: str) -> Plan:
    """The plan of a description in JSON, made once in a process. Raises FileError if it is another here."""
    told = json.loads(text)
    wanted, files = told.pop("plan"), told.pop("files")
    plan = Description(**told).plan()
    if files_of(plan.checkpoint) != files:
        raise FileError(f"{told['model']} is another model where this worker runs; give it the same files.")
    if digest_of(plan) != wanted:
        raise FileError(f"{told['model']}: this worker plans other types than the run; give it the same files.")
    return plan
