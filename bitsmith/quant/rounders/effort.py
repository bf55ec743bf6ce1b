"""Effort: how much work a rounder does, by name: one visible table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """What GPTQ and learned rounding do in addition to GPTQ as published.

    steps: steps of gradient descent per block
    batch: windows per step
    sweeps: rounds of coordinate descent with refitted scales, after GPTQ's pass
    corrects: whether weights are first corrected for the change of their inputs by earlier rounding
    rounding: size of the first steps of offsets at two bits, in codes
    scaling: size of the first steps of scales at two bits, as a share of a scale. Both sizes halve with each further
        bit, as errors do, and fall linearly to zero.
    """

    steps: int
    batch: int
    sweeps: int = 3
    corrects: bool = True
    rounding: float = 0.1
    scaling: float = 0.004


EFFORTS: dict[str, Effort] = {
    "fast": Effort(steps=50, batch=4, sweeps=0, corrects=False),
    "normal": Effort(steps=100, batch=8),
    "high": Effort(steps=300, batch=8, sweeps=6),
    "max": Effort(steps=300, batch=8, sweeps=6),  # then the whole model's scales are trained, see `pipeline`
}
