"""Turns a report into plain values, for `--json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bitsmith.planner.advice import advise
from bitsmith.planner.calibrating import Calibrating, calibrating_on
from bitsmith.planner.published import CUDA_CONTEXT
from bitsmith.planner.report import DeviceSet, PlanReport, Row
from bitsmith.planner.training import Training
from bitsmith.planner.verdict import Verdict


def to_dict(report: PlanReport) -> dict[str, Any]:
    """The whole report: model, workload, devices, formats with a verdict for each device, training, advice.

    Sizes are in bytes, speeds in tokens a second, losses are mean KLD in nats a token.
    """
    spec, network = report.spec, report.spec.network
    return {
        "model": {
            "name": spec.name,
            "source": spec.said,
            "architecture": network.arch,
            "parameters": spec.parameters,
            "active_parameters": spec.active,
            "layers": network.layers,
            "context": network.context,
            "attention": network.attention,
            "rule_of_thumb": spec.count is not None,
        },
        "load": asdict(report.workload),
        "devices": [_device_set(report, device_set) for device_set in report.device_sets],
        "formats": [_row(row, report.device_sets) for row in report.rows],
        "training": [
            {
                **asdict(training),
                "total": training.total,
                "assumptions": list(training.assumptions),
                "fits": places_for(report, training),
            }
            for training in report.training
        ],
        "runtimes": {
            verdict.runtime.name: {
                "bandwidth_share": verdict.runtime.share,
                "reserved": verdict.runtime.reserved,
                "error": verdict.runtime.error,
            }
            for row in report.rows
            for verdict in row.verdicts
            if verdict.kind != "no runtime"
        },
        "advice": list(advise(report)),
        "warnings": list(report.warnings),
    }


def places_for(report: PlanReport, training: Training) -> list[str]:
    """Names of the devices on which a training fits, with the memory of a CUDA context."""
    return [
        device_set.name
        for device_set in report.device_sets
        if training.total + (CUDA_CONTEXT if device_set.device.kind == "cuda" else 0) <= device_set.device.usable
    ]


def calibrating_of(report: PlanReport, device_set: DeviceSet) -> Calibrating | None:
    """What GPTQ takes of one GPU; None for other devices, and for models whose matrices are not known."""
    device = device_set.device
    return calibrating_on(report.spec.network, device.memory) if device.kind == "cuda" and device.memory else None


def _device_set(report: PlanReport, device_set: DeviceSet) -> dict[str, Any]:
    device, calibrating = device_set.device, calibrating_of(report, device_set)
    return {
        "name": device_set.name,
        "title": device.title,
        "count": device_set.count,
        "memory": device.memory,
        "usable": device.usable,
        "bandwidth": device.bandwidth or None,
        "matrix_types": sorted(device.matrix_types),
        "source": device.source,
        "calibration": None
        if calibrating is None
        else {
            "peak_bytes": calibrating.peak.nbytes,
            "peak_phase": calibrating.peak.name,
            "fits": calibrating.fits,
            "rows_at_a_time": calibrating.rows,
            "next_block_on_device": calibrating.ahead,
        },
    }


def _row(row: Row, device_sets: tuple[DeviceSet, ...]) -> dict[str, Any]:
    loss = row.loss
    return {
        "format": row.weights.target,
        "tensor_bytes": row.weights.total,
        "file_bytes": row.weights.file,
        "exact": row.how,
        "bits_per_weight": row.bits_per_weight,
        "measured_kld": None if loss is None else loss.plain,
        "measured_kld_calibrated": None if loss is None else loss.calibrated,
        "notes": list(row.weights.notes),
        "verdicts": [
            _verdict(verdict, device_set) for verdict, device_set in zip(row.verdicts, device_sets, strict=True)
        ],
    }


def _verdict(verdict: Verdict, device_set: DeviceSet) -> dict[str, Any]:
    return {
        "device": device_set.name,
        "runtime": verdict.runtime.name,
        "verdict": verdict.kind,
        "text": verdict.text,
        "weights": verdict.memory.weights,
        "cache": verdict.memory.cache,
        "working": verdict.memory.working,
        "total": verdict.total,
        "room": verdict.room,
        "largest_context": verdict.context,
        "layers_outside": verdict.outside,
        "bytes_outside": verdict.outside_bytes,
        "devices_needed": verdict.needed or None,
        "tokens_per_second": verdict.speed,
    }
