from collections.abc import Sequence

import numpy as np

def isa() -> str: ...
def isas() -> list[str]: ...
def read_bandwidth(threads: int, bytes: int, passes: int) -> float: ...

class Quantizer:
    def __init__(
        self,
        type: str,
        *,
        targets: Sequence[float],
        divisors: Sequence[float],
        reach: Sequence[int],
        rounds: int,
        scales: Sequence[float],
        isa: str = "",
    ) -> None: ...
    def fit(
        self,
        w: np.ndarray,
        *,
        columns: np.ndarray | None,
        d: np.ndarray | None = None,
        m: np.ndarray | None = None,
        scales: np.ndarray | None = None,
        mins: np.ndarray | None = None,
    ) -> None: ...
    def encode(
        self,
        data: np.ndarray,
        type: str,
        *,
        columns: np.ndarray | None,
        order: np.ndarray | None,
        reference: bool,
        out: np.ndarray,
    ) -> tuple[float, float, float]: ...
