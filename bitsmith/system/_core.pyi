from collections.abc import Sequence

import numpy as np

def isa() -> str: ...
def isas() -> list[str]: ...
def hold_memory() -> None: ...
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

class BookQuantizer:
    def __init__(self, type: str, *, isa: str = "") -> None: ...
    def round(
        self,
        w: np.ndarray,
        *,
        columns: np.ndarray | None,
        codes: np.ndarray,
        d: np.ndarray,
        scales: np.ndarray,
        shifts: np.ndarray | None = None,
    ) -> float: ...
    def nearest(
        self,
        w: np.ndarray,
        *,
        columns: np.ndarray | None,
        block: int,
        scales: np.ndarray,
        shifts: np.ndarray | None = None,
        codes: np.ndarray,
    ) -> None: ...
    def encode(
        self,
        data: np.ndarray,
        type: str,
        *,
        columns: np.ndarray | None,
        order: np.ndarray | None,
        out: np.ndarray,
    ) -> tuple[float, float, float]: ...

def round_codebook(
    data: np.ndarray,
    type: str,
    *,
    block: int,
    table: np.ndarray,
    patterns: np.ndarray,
    out: np.ndarray,
    absmax: np.ndarray,
    order: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    isa: str = "",
) -> tuple[float, float, float]: ...
def round_rows(
    data: np.ndarray,
    type: str,
    *,
    out: np.ndarray,
    absmax: np.ndarray,
    order: np.ndarray | None = None,
    isa: str = "",
) -> tuple[float, float, float]: ...
def column_sums(
    x: np.ndarray, *, square: np.ndarray, magnitude: np.ndarray, largest: np.ndarray, isa: str = ""
) -> None: ...
def add_grams(
    x: np.ndarray,
    gram: np.ndarray,
    original: np.ndarray | None = None,
    drift: np.ndarray | None = None,
    *,
    rounded: bool = False,
    threads: int = 1,
    isa: str = "",
) -> None: ...
def pivoted_order(
    hessian: np.ndarray, added: np.ndarray, *, least: float, order: np.ndarray, threads: int, isa: str = ""
) -> bool: ...
def trainable_lanes(*, isa: str = "") -> int: ...
def trainable_values(
    weight: np.ndarray,
    offsets: np.ndarray,
    scale: np.ndarray,
    base: np.ndarray | None,
    *,
    first: float,
    levels: int,
    values: np.ndarray,
    threads: int,
    isa: str = "",
) -> None: ...
def trainable_gradients(
    gradient: np.ndarray,
    weight: np.ndarray,
    offsets: np.ndarray,
    scale: np.ndarray,
    base: np.ndarray | None,
    *,
    first: float,
    levels: int,
    to_offsets: np.ndarray,
    to_scale: np.ndarray,
    to_base: np.ndarray | None = None,
    threads: int,
    isa: str = "",
) -> None: ...

class ScaleSearch:
    def __init__(
        self,
        table: Sequence[float],
        *,
        ratios: Sequence[float],
        asymmetric: bool,
        top: float,
        most: float,
        precision: str,
        block: int,
        signed: bool = False,
        isa: str = "",
    ) -> None: ...
    def fit(
        self,
        w: np.ndarray,
        importance: np.ndarray | None,
        *,
        threads: int,
        scale: np.ndarray | None = None,
        zero: np.ndarray | None = None,
        codes: np.ndarray | None = None,
        values: np.ndarray | None = None,
    ) -> None: ...
    def clip(
        self,
        w: np.ndarray,
        gram: np.ndarray,
        *,
        threads: int,
        scale: np.ndarray | None = None,
        zero: np.ndarray | None = None,
    ) -> None: ...
    def loss(
        self,
        w: np.ndarray,
        factors: np.ndarray,
        importance: np.ndarray | None,
        gram: np.ndarray,
        *,
        threads: int,
    ) -> float: ...

def grid_loss(
    w: np.ndarray,
    factors: np.ndarray,
    table: np.ndarray,
    scale: np.ndarray,
    offset: np.ndarray | None,
    gram: np.ndarray,
    *,
    threads: int,
    isa: str = "",
) -> float: ...

class Factor:
    def __init__(
        self,
        hessian: np.ndarray,
        feedback: np.ndarray,
        pivots: np.ndarray,
        added: np.ndarray,
        order: np.ndarray | None,
    ) -> None: ...

class Slab:
    def __init__(self, weights: np.ndarray, factor: Factor, *, threads: int, isa: str = "") -> None: ...
    def feedback(self, table: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> None: ...
    def nearest(
        self,
        table: np.ndarray,
        scale: np.ndarray,
        offset: np.ndarray | None,
        *,
        codes: np.ndarray,
        error: np.ndarray,
    ) -> None: ...
    def output_error(self, error: np.ndarray) -> None: ...
    def slope(self, start: int, stop: int) -> None: ...
    def moments(self, left: int, block: int, sums: np.ndarray) -> None: ...
    def move(
        self,
        left: int,
        table: np.ndarray,
        scale: np.ndarray,
        offset: np.ndarray | None,
        *,
        new_scale: np.ndarray,
        new_offset: np.ndarray | None,
    ) -> None: ...
    def recode(self, table: np.ndarray, scale: np.ndarray, offset: np.ndarray | None) -> None: ...
    def codes(self, table: np.ndarray, codes: np.ndarray) -> None: ...

class Pool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Mapping:
    def __init__(self, descriptor: int, size: int) -> None: ...
    @property
    def lost(self) -> bool: ...
    @property
    def data(self) -> np.ndarray: ...

class Arena:
    def __init__(self) -> None: ...

class Matrix:
    def __init__(self, layout: str, rows: int, cols: int, arena: Arena | None = None) -> None: ...
    def fill(self, first: int, count: int, data: np.ndarray, pool: Pool) -> None: ...
    def read(self, descriptor: int, offset: int, pool: Pool) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def packed(self) -> bool: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

readings: tuple[tuple[int, int, int], ...]

def reading_rates(matrices: Sequence[Matrix], isa: str, pool: Pool) -> list[float]: ...

class File:
    def __init__(self, descriptor: int) -> None: ...

def later_matrix(layout: str, rows: int, cols: int, file: File, offset: int) -> Matrix: ...
def view_matrix(layout: str, rows: int, cols: int, data: np.ndarray) -> Matrix: ...

class StoredProducts:
    def __init__(self, threads: int, isa: str = "") -> None: ...
    def forward(
        self,
        layout: str,
        rows: int,
        cols: int,
        panels: np.ndarray,
        x: np.ndarray,
        precision: str,
        out: np.ndarray,
        threshold: float | None = None,
    ) -> None: ...
    def back(self, layout: str, rows: int, cols: int, panels: np.ndarray, x: np.ndarray, out: np.ndarray) -> None: ...
    def decode(
        self,
        rows: int,
        cols: int,
        width: int,
        has_offset: bool,
        panels: np.ndarray,
        levels: np.ndarray,
        out: np.ndarray,
    ) -> None: ...

class Linear:
    def __init__(
        self,
        weight: Matrix,
        bias: np.ndarray | None,
        threshold: float | None = None,
        down: Matrix | None = None,
        up: Matrix | None = None,
    ) -> None: ...

class Cache:
    def __init__(
        self,
        heads: Sequence[tuple[int, int]],
        batch: int,
        capacity: int,
        type: str,
        rotations: Sequence[tuple[np.ndarray, np.ndarray]],
        states: Sequence[int] = ...,
    ) -> None: ...
    def set_longer(self, number: int, context: int, cosines: np.ndarray, sines: np.ndarray) -> None: ...
    def copy(self, other: Cache, lengths: np.ndarray) -> None: ...
    def copy_slot(self, source: int, slot: int, length: int) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Operation: ...

class Attention(Operation):
    def __init__(
        self,
        linears: Sequence[Linear | None],
        q_norm: np.ndarray | None,
        k_norm: np.ndarray | None,
        sinks: np.ndarray | None,
        *,
        layer: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        norm_eps: float,
        window: int,
        rotation: int,
        interleaved: bool,
        whole_norms: bool,
        late_norms: bool,
        query_scale: float,
        temperature: float,
        temperature_length: int,
        softcap: float,
        value_norms: bool,
        gated: bool,
    ) -> None: ...

class DeltaNet(Operation):
    def __init__(
        self,
        mixed: Linear,
        z: Linear,
        gates: Sequence[Linear],
        output: Linear,
        taps: np.ndarray,
        factors: np.ndarray,
        shifts: np.ndarray,
        norm: np.ndarray,
        *,
        layer: int,
        key_heads: int,
        value_heads: int,
        key_dim: int,
        value_dim: int,
        tiled: bool,
        norm_eps: float,
    ) -> None: ...

class Mlp(Operation):
    def __init__(self, activation: str, gate: Linear, up: Linear, down: Linear) -> None: ...

class LayerEmbedding(Operation):
    def __init__(self, activation: str, layer: int, gate: Linear, projection: Linear) -> None: ...

class Residency:
    def __init__(self, limit: int) -> None: ...
    @property
    def limit(self) -> int: ...
    @property
    def fetched(self) -> int: ...

class Router:
    def __init__(
        self,
        linear: Linear,
        norm: np.ndarray | None = None,
        scales: np.ndarray | None = None,
        *,
        norm_eps: float = 0.0,
    ) -> None: ...

class Experts(Operation):
    def __init__(
        self,
        activation: str,
        router: Router,
        gates: Sequence[Linear],
        ups: Sequence[Linear],
        downs: Sequence[Linear],
        residency: Residency | None,
        *,
        used: int,
        chosen: bool,
        normalize: bool,
    ) -> None: ...

class SharedExpert(Operation):
    def __init__(self, experts: Experts, shared: Mlp, gate: Linear) -> None: ...

class ExpertsBesideMlp(Operation):
    def __init__(self, mlp: Mlp, experts: Experts, norms: Sequence[np.ndarray], *, norm_eps: float) -> None: ...

class Model:
    def __init__(
        self,
        hidden: int,
        *,
        norm_eps: float,
        embedding_scale: float,
        residual_scale: float,
        exact: bool,
        fine: bool,
        isa: str,
        pool: Pool,
    ) -> None: ...
    def add_part(
        self, operation: Operation, before: np.ndarray | None, after: np.ndarray | None, scale: float = 1.0
    ) -> None: ...
    def set_layer_inputs(self, projection: Linear, norm: np.ndarray) -> None: ...
    def set_reading(self, packed: int, floats: int) -> None: ...
    def times(self) -> tuple[float, float, float]: ...
    def set_ends(self, embedding: Matrix, norm: np.ndarray, output: Matrix) -> None: ...
    def hidden(
        self,
        tokens: np.ndarray,
        slots: np.ndarray,
        starts: np.ndarray,
        counts: np.ndarray,
        cache: Cache,
        table: np.ndarray | None = None,
        single: int | None = None,
    ) -> np.ndarray: ...
    def logits(self, hidden: np.ndarray) -> np.ndarray: ...

def causal_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    out: np.ndarray,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: np.ndarray | None = None,
    threads: int = 1,
    isa: str = "",
) -> None: ...
def rotated_heads(
    x: np.ndarray,
    cosines: np.ndarray,
    sines: np.ndarray,
    *,
    interleaved: bool,
    out: np.ndarray,
    threads: int = 1,
) -> None: ...
def normed_rows(
    x: np.ndarray, weight: np.ndarray, *, eps: float, out: np.ndarray, threads: int = 1, isa: str = ""
) -> None: ...
def gated_rows(
    gate: np.ndarray, up: np.ndarray, *, activation: str, out: np.ndarray, threads: int = 1, isa: str = ""
) -> None: ...
