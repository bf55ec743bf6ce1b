"""What a container is: how a quantized model is stored, and which programs read it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitsmith.containers.base import Codec, ModuleCodec
    from bitsmith.containers.composite import CompositeTensor, Entries
    from bitsmith.quant.formats.base import Format

from bitsmith.containers.module_lists import whole_names
from bitsmith.quant.input_rounding import LLM_INT8, THRESHOLD, InputRounding

GROUPS = (128, 64, 32)  # tried in this order if the user gives no group size


@dataclass(frozen=True)
class Container:
    """A container: a row of `bitsmith.containers.CONTAINERS`.

    name: as in `--to`
    codec: format -> its codec; None if the container cannot hold the format
    is_folder: whether an output is a folder, not a file
    runtimes: programs other than bitsmith that read it
    """

    name: str
    codec: Callable[[Format], Codec | None]
    is_folder: bool = True
    runtimes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Scheme:
    """One way to store the matrix of a linear layer.

    kind: the container's own name for the layout, read by its `stored`
    group: number of weights that share a scale; 0: a whole row; None: the first of `groups` that divides every row
    asymmetric: whether there are zero points
    grouped: whether the user may choose the group size
    optional_zeros: whether the user may choose zero points
    scope: what one scale covers if there are no groups: "channel" or "tensor"
    inputs: how the layer's input is rounded: "", "int8", "fp8" or "llm.int8"
    static: whether the file stores one scale per input tensor; if not, each token gets its scale when the model runs
    groups: group sizes to try if the user gives none
    known_groups: all sizes that its readers know; () for any, whole rows included
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
    groups: tuple[int, ...] = GROUPS
    known_groups: tuple[int, ...] = ()

    @property
    def input_rounding(self) -> InputRounding | None:
        """How runtimes round the inputs, without a value for a stored scale."""
        if not self.inputs:
            return None
        threshold = THRESHOLD if self.inputs == LLM_INT8 else 0.0
        return InputRounding(self.inputs, "tensor" if self.static else "token", threshold=threshold)


@dataclass(frozen=True)
class Modules:
    """The linear layers of a folder, by module name.

    main: the scheme of most modules
    others: schemes of modules that differ from `main`
    kept: linear modules in 16 bits
    of_main: modules of the scheme `main`
    version: version of the layout, see `ModuleContainer.version`
    """

    main: Scheme
    others: Mapping[str, Scheme]
    kept: Sequence[str]
    version: int
    of_main: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ModuleContainer(Container):
    """A safetensors folder with quantized linear layers, described in its config.json.

    schemes: by the NAME in `--to CONTAINER/NAME`
    stored: (scheme with its group, precision of scales, version) -> format and codec
    configuration: modules -> the value of `quantization_config` in config.json
    further_files: that value -> content of small files that the container's own tools need, by name
    version: the schemes of all modules -> the version of the layout that can hold them
    precision: precision of scales, "f16"; "": the model's own 16-bit type
    mixed: whether modules may have different schemes
    fuses: whether readers load q, k and v as one matrix, gate and up as one, and all experts of a layer, so that each
        of these needs one scheme; if not, embedding and head may have schemes too
    linears_only: whether readers quantize only layers that are modules of their own, so that experts, which
        transformers keeps in one parameter, stay in 16 bits
    warnings: (main scheme, version) -> warnings about runtimes that refuse the folder
    quant_method: value of `quant_method` in `quantization_config`, which identifies a folder
    marks: endings of entry names that identify a quantized weight
    config_keys: the keys of config.json that hold the configuration
    kept_list: `quantization_config` -> the list in it of linear modules in 16 bits; None if readers go by the entries
    skipped_by: (that list, names of modules) -> the names that readers take for modules in 16 bits
    old_config: the file that older tools wrote instead of `quantization_config`; "" if there is none
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
    fuses: bool = True
    linears_only: bool = False
    warnings: Callable[[Scheme, int], Sequence[str]] = lambda main, version: ()
    config_keys: tuple[str, ...] = ("quantization_config",)
    kept_list: Callable[[Mapping[str, Any]], Sequence[str]] | None = None
    skipped_by: Callable[[Collection[str], Iterable[str]], set[str]] = whole_names
    old_config: str = ""
