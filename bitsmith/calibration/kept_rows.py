"""Rounded rows and their reports as arrays and plain values, for the state of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bitsmith.calibration.rounding import RoundingReport
from bitsmith.quant.formats.base import Format, NeedsExtent
from bitsmith.quant.rounders.gptq import GptqReport
from bitsmith.quant.tensor import QuantTensor
from bitsmith.recipe.rounded_rows import RoundedRows
from bitsmith.work.state import State


def reports_to_values(reports: Mapping[str, RoundingReport]) -> dict[str, Any]:
    """Reports as plain values for JSON."""
    return {
        name: {
            "gptq": None if said.gptq is None else _plain(said.gptq),
            "recovered": said.recovered,
            "cut": said.cut,
            "moved": said.moved,
        }
        for name, said in reports.items()
    }


def reports_from_values(values: Mapping[str, Any]) -> dict[str, RoundingReport]:
    """The reports that `reports_to_values` was given."""
    return {
        name: RoundingReport(
            None if said["gptq"] is None else GptqReport(**said["gptq"]),
            said["recovered"],
            said["cut"],
            said["moved"],
        )
        for name, said in values.items()
    }


def _plain(report: GptqReport) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in vars(report).items()}


def rows_to_arrays(rows: Sequence[RoundedRows]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Rows as plain values and arrays."""
    values, arrays = [], {}
    for at, each in enumerate(rows):
        told: dict[str, Any] = {"name": each.name, "start": each.start}
        arrays[f"{at}.weight"] = each.weight
        if each.tensor is not None:
            told["params"] = list(each.tensor.params)
            told["extent"] = _extent(each.tensor.format)
            arrays[f"{at}.codes"] = np.asarray(each.tensor.codes)
            arrays |= {f"{at}.param.{name}": np.asarray(value) for name, value in each.tensor.params.items()}
        values.append(told)
    return values, arrays


def rows_from_arrays(
    values: Sequence[Mapping[str, Any]], state: State, formats: Mapping[str, Format]
) -> list[RoundedRows]:
    """The rows that `rows_to_arrays` was given. formats: of the linears, by GGUF name without ".weight" """
    found = []
    for at, told in enumerate(values):
        rows = RoundedRows(told["name"], told["start"], state.array(f"{at}.weight"), None)
        if "params" in told:
            format = formats[rows.name.removesuffix(".weight")]
            if told["extent"] is not None and isinstance(format, NeedsExtent):
                format = format.with_extent(*told["extent"])
            params = {name: state.array(f"{at}.param.{name}") for name in told["params"]}
            rows = replace(rows, tensor=QuantTensor(format, state.array(f"{at}.codes"), params))
        found.append(rows)
    return found


def _extent(format: Format) -> list[float] | None:
    """The extent of a tensor with one scale; None if its format has none."""
    if not isinstance(format, NeedsExtent):
        return None
    low, high = getattr(format, "low", None), getattr(format, "high", None)
    return None if low is None or high is None else [float(low), float(high)]
