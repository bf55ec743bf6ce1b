"""Effort: how long a rounder may take, by name: one visible table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """What GPTQ and learned rounding do beyond GPTQ as published.

    steps: of gradient descent a block; batch: windows a step
    sweeps: rounds of coordinate descent after GPTQ's pass, scales refitted
    corrects: whether weights first make up for what earlier rounding did to their inputs
    rounding: size of the first steps at two bits, in codes; scaling: the same as a share of a scale. Both halve with
        each further bit, as errors do, and fall linearly to zero.
    """

    steps: int
    batch: int
    sweeps: int = 3
    corrects: bool = True
    rounding: float = 0.02
    scaling: float = 0.001


EFFORTS: dict[str, Effort] = {
    "fast": Effort(steps=50, batch=4, sweeps=0, corrects=False),
    "normal": Effort(steps=200, batch=8),
    "high": Effort(steps=500, batch=8, sweeps=6),
}
