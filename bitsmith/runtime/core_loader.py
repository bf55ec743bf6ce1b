"""Makes the core's model of a checkpoint: every tensor is read, and made ready for products."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from bitsmith.errors import FileError, UnsupportedError
from bitsmith.models.arch.config import ModelConfig
from bitsmith.runtime import reading
from bitsmith.runtime.choosing import choose
from bitsmith.runtime.core_decoder import CoreDecoder
from bitsmith.runtime.core_network import rounds
from bitsmith.runtime.core_parts import core_parts
from bitsmith.runtime.kernel import Weight
from bitsmith.runtime.layer_inputs import LayerTable
from bitsmith.runtime.types import FLOATS, PACKED
from bitsmith.runtime.weights import WeightReader
from bitsmith.system.core import core
from bitsmith.system.progress import Progress, Report, silent

_SLAB_WEIGHTS = 4 << 20  # weights decoded at a time: 16 MB of float32


def load_core(
    config: ModelConfig,
    read: WeightReader,
    *,
    threads: int,
    exact: bool,
    fine: bool = False,
    cache_type: str = "f16",
    isa: str | None = None,
    expert_memory: int | None = None,
    report: Report = silent,
) -> CoreDecoder:
    """Read every tensor and make it ready for products.

    Matrices of ggml's block types (PACKED), integers by groups, NF4, FP4, MXFP4 and NVFP4 stay packed, interleaved by
    16 rows; floats are mapped from their file where they lie in one piece; everything else is decoded to float32.

    exact: inputs of products stay float32; otherwise those of packed matrices are rounded in blocks of 32, to int8 in
        prompts and to 15 bits where a single row is computed
    fine: those of packed matrices in prompts are rounded to 15 bits, too: prompts take twice the time
    isa: instruction set; None: the best, or the one BITSMITH_ISA names
    expert_memory: bytes of packed experts that lie in memory at once; the others are read from their file when a token
        needs them. None: all are read now
    Raises FileError where a file ends too early, UnsupportedError for inputs rounded otherwise than by LLM.int8().
    """
    module = core()
    assert module is not None
    isa = isa or module.isa()
    residency = None if expert_memory is None else module.Residency(expert_memory)
    loader = MatrixLoader(read, module.Pool(threads), residency)
    model = module.Model(
        config.hidden,
        norm_eps=config.norm_eps,
        embedding_scale=config.embedding_scale,
        residual_scale=config.residual_scale,
        exact=exact,
        fine=fine,
        isa=isa,
        pool=loader.pool,
    )
    try:
        for layer in range(config.layers):
            report(Progress("load", layer, config.layers, "layers", f"blk.{layer}"))
            for part in core_parts(module, loader, config, layer):
                model.add_part(*part)
        table = _layer_table(config, read, loader, model)
        size, norm = _set_ends(config, loader, model)
    finally:
        loader.close()
    report(Progress("load", config.layers, config.layers, "layers"))
    choices = choose(module, model, loader.matrices, isa, loader.pool, exact=exact, fine=fine)
    return CoreDecoder(
        config, model, size, cache_type=cache_type, maps=loader.maps, choices=choices, output_norm=norm, table=table
    )


def _layer_table(config: ModelConfig, read: WeightReader, loader: MatrixLoader, model: Any) -> LayerTable | None:
    """The table of the embeddings of layers, and what the model does with them; None without."""
    if not config.layer_width:
        return None
    projection = loader.linear("per_layer_model_proj", False, None)
    model.set_layer_inputs(projection, loader.vector("per_layer_proj_norm.weight"))
    return LayerTable(read("per_layer_token_embd.weight"))


def _set_ends(config: ModelConfig, loader: MatrixLoader, model: Any) -> tuple[int, np.ndarray]:
    """Give the model its embedding, norm and head; bytes of matrices that one token reads, and the norm."""
    loaded = round(loader.bytes)
    embedding = loader.factor("token_embd.weight") if config.tied else loader.matrix("token_embd.weight")
    output = embedding if config.tied else loader.factor("output.weight")
    norm = loader.vector("output_norm.weight")
    model.set_ends(embedding, norm, output)
    return loaded + output.nbytes + (0 if config.tied else embedding.row_bytes), norm


class MatrixLoader:
    """Makes the core's matrices.

    bytes: those that one token reads, as they lie in memory
    residency: what keeps experts that are fetched on demand; None to read them now
    share: of the matrices to come, the share that one token reads
    maps: the mapped files
    """

    def __init__(self, read: WeightReader, pool: Any, residency: Any = None) -> None:
        self.pool = pool
        self.residency = residency
        self.bytes = 0.0
        self.share = 1.0
        self._read = read
        module: Any = core()
        self._core = module
        self._arena = module.Arena()
        self._files: dict[Path, int] = {}
        self._kept: dict[Path, Any] = {}
        self.maps: dict[Path, Any] = {}
        self.matrices: dict[tuple[str, str], list[Any]] = {}  # by kind and layout; see `choose_readings`

    def vector(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._read(name).vector(), np.float32)

    def rows(self, name: str) -> np.ndarray:
        """A small matrix as float32 [rows, cols]."""
        weight = self._read(name)
        return np.ascontiguousarray(weight.rows(0, weight.info.rows), np.float32)

    def linear(self, name: str, biased: bool, rows: tuple[int, int] | None) -> Any:
        """A linear. rows: (first, count) of the tensor's rows; None for all"""
        bias = self.vector(f"{name}.bias") if biased else None
        if bias is not None and rows is not None:
            bias = np.ascontiguousarray(bias[rows[0] : sum(rows)])
        own = f"{name}.weight"
        return self._core.Linear(self.factor(own, rows), bias, self._threshold(own), *self._adapter(own, rows))

    def _adapter(self, name: str, rows: tuple[int, int] | None) -> list[Any]:
        """The two matrices of what an adapter adds, in float32; [] without one."""
        weight = self._read(name) if rows is None else self._read(name).part(*rows)
        if weight.adapter is None:
            return []
        found = []
        for values in (weight.adapter.down, weight.adapter.scaled_up):
            matrix = self._core.Matrix("f32", *values.shape)
            matrix.fill(0, len(values), np.ascontiguousarray(values).reshape(-1).view(np.uint8), self.pool)
            self.bytes += matrix.nbytes * self.share
            found.append(matrix)
        return found

    def factor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A matrix that products are taken with."""
        made = self.matrix(name, rows)
        kind = reading.PACKED if made.packed else reading.FLOATS
        self.matrices.setdefault((kind, self._read(name).info.layout), []).append(made)
        return made

    def matrix(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """The tensor, or some of its rows, as the core's Matrix."""
        weight = self._read(name) if rows is None else self._read(name).part(*rows)
        made = self._stored(weight) if weight.info.layout in PACKED + FLOATS and weight.extent else self._made(weight)
        self.bytes += made.nbytes * self.share
        return made

    def exact(self, name: str, biased: bool) -> Any:
        """A linear in float32, whatever its type: of a router, whose choice is not to depend on rounded inputs."""
        rows = self.rows(f"{name}.weight")
        matrix = self._core.Matrix("f32", *rows.shape)
        matrix.fill(0, len(rows), rows.reshape(-1).view(np.uint8), self.pool)
        self.bytes += matrix.nbytes * self.share
        bias = self.vector(f"{name}.bias") if biased else None
        return self._core.Linear(matrix, bias, self._threshold(f"{name}.weight"))

    def stack(self, name: str, biased: bool, count: int, own: tuple[int, int] | None = None) -> list[Any]:
        """The linears of `count` experts whose matrices lie one behind the other.

        own: (first, count) of each expert's rows; None for all
        """
        rows = self._read(f"{name}.weight").info.rows // count
        first, size = own or (0, rows)
        biases = self._read(f"{name}.bias").rows(0, count)[:, first : first + size] if biased else None
        parts = [(e * rows + first, size) for e in range(count)]
        matrices = [self._later(f"{name}.weight", part) or self.factor(f"{name}.weight", part) for part in parts]
        threshold = self._threshold(f"{name}.weight")
        own_biases = [None if biases is None else np.ascontiguousarray(biases[e], np.float32) for e in range(count)]
        found = zip(matrices, own_biases, strict=True)
        return [self._core.Linear(matrix, bias, threshold) for matrix, bias in found]

    def _threshold(self, name: str) -> float | None:
        """That of LLM.int8(), if it rounds a matrix's inputs; 0 where no input is too large for it.

        Raises UnsupportedError for another rounding.
        """
        rounding = self._read(name).input_rounding
        if not rounds(rounding):
            raise UnsupportedError(f"{name}: the C++ core does not round inputs as it asks for ({rounding}).")
        return None if rounding is None else rounding.threshold

    def _later(self, name: str, rows: tuple[int, int]) -> Any:
        """Some rows as a matrix that is read on demand; None if they are to be read now."""
        weight = self._read(name).part(*rows)
        info, extent = weight.info, weight.extent
        if self.residency is None or extent is None or info.layout not in PACKED:
            return None
        if extent.path not in self._kept:
            self._kept[extent.path] = self._core.File(self._open(extent.path))
        made = self._core.later_matrix(info.layout, info.rows, info.cols, self._kept[extent.path], extent.offset)
        self.bytes += made.nbytes * self.share
        return made

    def _stored(self, weight: Weight) -> Any:
        info, extent = weight.info, weight.extent
        assert extent is not None
        descriptor = self._open(extent.path)
        if info.layout in FLOATS:
            if os.fstat(descriptor).st_size < extent.offset + info.nbytes:
                raise FileError(f"{extent.path}: {info.name}: the file is shorter than when it was opened.")
            data = self._map(extent.path)[extent.offset : extent.offset + info.nbytes]
            return self._core.view_matrix(info.layout, info.rows, info.cols, data)
        matrix = self._core.Matrix(info.layout, info.rows, info.cols, self._arena)
        try:
            matrix.read(descriptor, extent.offset, self.pool)
        except RuntimeError as error:
            raise FileError(f"{extent.path}: {info.name}: {error} Something else may be writing to it.") from None
        return matrix

    def _made(self, weight: Weight) -> Any:
        """From codes where the core has blocks for their format, else decoded."""
        from bitsmith.runtime.core_grids import grid_layout, grid_rows  # and with it all formats

        rows, cols = weight.info.rows, weight.info.cols
        codes = weight.codes(0, 0)
        layout = None if codes is None else grid_layout(codes.format, cols)
        matrix = self._core.Matrix(layout or "f32", rows, cols, self._arena)
        step = max(32, _SLAB_WEIGHTS // max(cols, 1) // 32 * 32)
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            if layout is None:
                data = np.ascontiguousarray(weight.rows(start, stop), np.float32)
            else:
                slab = weight.codes(start, stop)
                assert slab is not None
                data = grid_rows(slab, layout)
            matrix.fill(start, stop - start, data.reshape(-1).view(np.uint8), self.pool)
        return matrix

    def _open(self, path: Path) -> int:
        if path not in self._files:
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def _map(self, path: Path) -> np.ndarray:
        """The bytes of the whole file: only then can the system use large pages."""
        if path not in self.maps:
            descriptor = self._open(path)
            try:
                self.maps[path] = self._core.Mapping(descriptor, os.fstat(descriptor).st_size)
            except RuntimeError as error:
                raise FileError(f"{path}: {error}; check its file system, or copy it to a local disk.") from None
        data: np.ndarray = self.maps[path].data
        return data

    def close(self) -> None:
        """Mapped pages stay without the files' descriptors."""
        for descriptor in self._files.values():
            os.close(descriptor)
