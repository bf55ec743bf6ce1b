"""What a container is: where the bytes of a quantized model go, who reads them, and how."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitsmith.containers.base import Codec, ModuleCodec
    from bitsmith.containers.composite import CompositeTensor, Entries
    from bitsmith.quant.formats.base import Format

from bitsmith.quant.input_rounding import InputRounding

GROUPS = (128, 64, 32)  # tried in this order where nobody chose a group size


@dataclass(frozen=True)
class Container:
    """A container: a row of `bitsmith.containers.CONTAINERS`.

    name: as in `--to`
    codec: the codec of a format in it; None where it cannot hold the format
    is_folder: whether an output is a folder, not a file
    runtimes: the programs that read it, beside bitsmith
    """

    name: str
    codec: Callable[[Format], Codec | None]
    is_folder: bool = True
    runtimes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scheme:
    """One way to store the matrix of a linear layer.

    kind: a word of the container's own, which its `stored` reads
    group: weights that share a scale; 0: a whole row; None: the largest of GROUPS that divides every row
    asymmetric: whether there are zero points
    grouped: whether the user may choose the group size; optional_zeros: whether the user may choose zero points
    scope: of a scale where there are no groups: "channel" or "tensor"
    inputs: how the layer's input is rounded: "", "int8" or "fp8"
    static: whether the scale of the input is stored, one a tensor; otherwise it is found as the model runs, one a token
    """

    kind: str
    bits: int
    group: int | None = None
    asymmetric: bool = False
    grouped: bool = True
    optional_zeros: bool = True
    scope: str = "channel"
    inputs: str = ""
    static: bool = False

    @property
    def input_rounding(self) -> InputRounding | None:
        """How readers round the inputs; a stored scale is not known yet."""
        return InputRounding(self.inputs, "tensor" if self.static else "token") if self.inputs else None


@dataclass(frozen=True)
class Modules:
    """The linear layers of a folder, by the names of their modules.

    main: the scheme of most modules; others: of modules that have another; kept: linear modules in 16 bits
    version: of the layout, see `ModuleContainer.version`
    """

    main: Scheme
    others: Mapping[str, Scheme]
    kept: Sequence[str]
    version: int


@dataclass(frozen=True, kw_only=True)
class ModuleContainer(Container):
    """A safetensors folder whose linear layers are quantized and whose config.json says how.

    schemes: by the name that stands in `--to CONTAINER/NAME`
    stored: (scheme with its group, precision of scales, version) -> format and codec
    configuration: the value of config.json's `quantization_config`
    further_files: that value -> small files which the container's own tools look for, by name
    version: the schemes of all modules -> which version of the layout holds them
    precision: of scales, "f16"; "" takes the model's own 16-bit type
    mixed: whether modules may have different schemes
    warnings: (main scheme, version) -> what readers will refuse
    quant_method: in `quantization_config`, by which a folder is recognised
    marks: ends of the names of entries that show a quantized weight
    old_config: the file that older tools wrote in place of `quantization_config`; "": none
    read: (folder, its configuration, its entries) -> its quantized weights
    """

    schemes: Mapping[str, Scheme]
    stored: Callable[[Scheme, str, int], tuple[Format, ModuleCodec]]
    configuration: Callable[[Modules], dict[str, Any]]
    read: Callable[[Path, Mapping[str, Any], Entries], Iterator[CompositeTensor]]
    quant_method: str
    marks: tuple[str, ...]
    further_files: Callable[[Mapping[str, Any]], Mapping[str, Mapping[str, Any]]] = lambda config: {}
    version: Callable[[Collection[Scheme]], int] = lambda schemes: 0
    precision: str = ""
    mixed: bool = True
    warnings: Callable[[Scheme, int], Sequence[str]] = lambda main, version: ()
    old_config: str = ""
