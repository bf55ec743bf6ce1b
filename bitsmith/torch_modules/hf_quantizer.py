"""transformers' own door: `from_pretrained` of a folder of bitsmith's own container, and quantizing while it loads.

Importing this module needs transformers and registers `quant_method: "bitsmith"` there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitsmith.containers.native import TENSORS_KEY, metadata
from bitsmith.containers.native_reader import table
from bitsmith.containers.safetensors_header import read_header
from bitsmith.errors import FileError, UnsupportedError, UsageError
from bitsmith.torch_modules.finding import Place, places
from bitsmith.torch_modules.precision import precision_of
from bitsmith.torch_modules.quantize import MOST_LEFT, assign, check_share, put
from bitsmith.torch_modules.stored_weight import StoredWeight, make_stored

METHOD = "bitsmith"


@register_quantization_config(METHOD)
class BitsmithConfig(QuantizationConfigMixin):
    """What config.json says of a folder of bitsmith, and how `from_pretrained` quantizes an original.

    format, keep, compute_dtype, most_left: see `bitsmith.torch.quantize_module`. In a folder that is quantized already,
    each file says itself in which format its tensors are.
    """

    def __init__(
        self,
        format: str = "nf4",
        keep: Sequence[str] | None = None,
        compute_dtype: str | None = None,
        most_left: float = MOST_LEFT,
        quant_method: str = METHOD,
    ) -> None:
        self.quant_method = quant_method  # type: ignore[assignment]
        self.format = format
        self.keep = None if keep is None else list(keep)
        self.compute_dtype = None if compute_dtype is None else str(compute_dtype).removeprefix("torch.")
        self.most_left = most_left


@register_quantizer(METHOD)
class BitsmithQuantizer(HfQuantizer):
    """Puts quantized modules into a model of transformers while it is loaded."""

    requires_calibration = False
    quantization_config: BitsmithConfig

    def __init__(self, quantization_config: BitsmithConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.waiting: dict[str, tuple[Place, str, Any]] = {}  # by parameter: its place, its name there, its format
        self.made: dict[int, dict[str, StoredWeight]] = {}  # by module: what of it is quantized

    @property
    def precision(self) -> str:
        """See `operations.matmul`."""
        return precision_of(self.quantization_config.compute_dtype)

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Raises UsageError for a device map with the disk."""
        places = set(device_map.values()) if isinstance(device_map, dict) else {device_map}
        if "disk" in places:
            raise UsageError("device_map: quantized weights cannot stay on the disk; give a device that holds them.")

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> None:
        if self.pre_quantized:
            self._expect_stored(model, [Path(file) for file in checkpoint_files or ()])
        else:
            self._expect_original(model)

    def _expect_stored(self, model: nn.Module, files: Sequence[Path]) -> None:
        """Replace the modules whose weights the files hold quantized."""
        formats = _formats_in(model, files)
        for place in list(places(model)):
            names = place.kind.weights(place.module)
            own = [f"{place.names[0]}.{parameter}" for parameter in names]
            found = [formats.pop(name, None) for name in own]
            if not any(found):
                continue
            if None in found:
                raise UnsupportedError(f"{place.names[0]}: only some of its weights are quantized in the files.")
            made = {}
            for name, parameter, format in zip(own, names, found, strict=True):
                weight = place.matrix(parameter)
                made[parameter] = make_stored(name, str(format), tuple(weight.shape), weight.dtype)
            put(model, place, place.kind.replaced(place.module, made, self.precision))
        if formats:
            name, format = next(iter(formats.items()))
            raise UnsupportedError(
                f"{name} is {format} in the files, and no linear layer or fused experts in transformers' "
                f"{type(model).__name__}; quantize the model again with keep for such tensors."
            )

    def _expect_original(self, model: nn.Module) -> None:
        """Remember what becomes of every parameter; each is quantized when it is read."""
        config = self.quantization_config
        tasks = assign(model, config.format, config.keep)
        check_share(tasks, model, config.most_left)
        self.tasks = tasks
        for name, task in tasks.items():
            if task.format is not None:
                assert task.place is not None
                self.waiting[name] = task.place, task.parameter, task.format

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        """Whether a parameter is quantized when it is read."""
        return param_name in self.waiting

    def get_quantize_ops(self) -> ConversionOps:
        """What is done to such a parameter."""
        return _Quantize(self)

    def quantize(self, model: nn.Module, name: str, value: Tensor) -> None:
        """Quantize a parameter that was read, and replace its module once all of its weights are."""
        place, parameter, format = self.waiting.pop(name)
        weight = value.transpose(-1, -2) if place.kind.transposed(place.module) else value
        made = self.made.setdefault(id(place.module), {})
        made[parameter] = StoredWeight.quantized(weight, format, name)
        if set(made) == set(place.kind.weights(place.module)):
            put(model, place, place.kind.replaced(place.module, made, self.precision))
            del self.made[id(place.module)]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.waiting:
            raise FileError(f"the files lack {next(iter(self.waiting))}; get the model again.")
        for module in model.modules():
            if isinstance(module, StoredWeight):
                module.pack()
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict[str, str]]:
        """The names and formats of quantized weights, for the saved files' metadata: bitsmith reads them."""
        return None, native_metadata(model)

    def is_serializable(self) -> bool:
        """Yes."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters and what was not quantized can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Yes."""
        return True

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        from bitsmith.torch_modules.dense import dequantize_module

        dequantize_module(model, dtype=dtype)
        return model


class _Quantize(ConversionOps):
    """Quantizes a parameter as it is read; nothing is left for transformers to place."""

    def __init__(self, quantizer: BitsmithQuantizer) -> None:
        self.quantizer = quantizer

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], *, model: nn.Module, missing_keys: set[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """By the parameters' full names."""
        left = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            if name in self.quantizer.waiting:
                self.quantizer.quantize(model, name, tensor)
                missing_keys.discard(name)
            else:
                left[name] = tensor
        return left


def _formats_in(model: Any, files: Sequence[Path]) -> dict[str, str]:
    """The format of each quantized parameter, by its name in the model. Raises FileError where the files say none."""
    stored: dict[str, str] = {}
    for file in files:
        said = read_header(file).metadata.get(TENSORS_KEY, "{}")
        stored |= {name: str(format) for name, format in table(file, TENSORS_KEY, said).items()}
    if not stored:
        raise FileError(
            f"{files[0].parent if files else 'the folder'}: config.json says quant_method bitsmith, but the files name "
            "no quantized tensors; make the folder again."
        )
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    known = dict(model.named_parameters())
    found: dict[str, str] = {}
    for name, format in stored.items():
        renamed, _ = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if found.setdefault(renamed, format) != format:
            raise UnsupportedError(
                f"{renamed} is made of tensors in {found[renamed]} and {format}; transformers keeps them in one, so "
                "quantize them alike."
            )
    return found


def native_metadata(model: nn.Module) -> dict[str, str]:
    """`containers.native.metadata` of a model's quantized weights, by their names in saved files."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, StoredWeight):
            continue
        key = f"{name}.codes"
        for saved, codes in _saved(model, key, torch.empty(module.shape, device="meta")).items():
            tensors[saved.removesuffix(".codes")] = module.format.name, tuple(codes.shape)
    return metadata(tensors) if tensors else {}


def _saved(model: Any, key: str, value: Tensor) -> Mapping[str, Tensor]:
    """What a tensor is called when it is saved; fused ones are taken apart."""
    reverted: dict[str, Tensor] = revert_weight_conversion(model, {key: value})
    return reverted


def attach(model: nn.Module, config: BitsmithConfig) -> None:
    """Let a model that was quantized in place be saved as what `from_pretrained` loads."""
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        known: Any = model
        known.hf_quantizer = BitsmithQuantizer(config, pre_quantized=True)
        known.config.quantization_config = config
        known.is_quantized = True
        known.quantization_method = METHOD


__all__ = ["METHOD", "BitsmithConfig", "BitsmithQuantizer", "attach", "native_metadata"]
