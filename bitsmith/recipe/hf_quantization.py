"""`quantization_config`: how readers are told what a gptq, awq or compressed folder holds.

Keys as AutoGPTQ and GPTQModel (quantize_config.json), AutoAWQ (quant_config.json) and compressed-tensors 0.20
(`QuantizationConfig`) write them, and transformers and vLLM read them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bitsmith.recipe.scheme import Scheme
from bitsmith.version import __version__

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # that vLLM loads as one matrix
_FUSED_NAMES = ("qkv_proj", "gate_up_proj")
_FORMATS = {"packed": "pack-quantized", "integer": "int-quantized", "float": "float-quantized"}


def quantization_config(
    container: str, main: Scheme, others: Mapping[str, Scheme], kept: Sequence[str], *, legacy: bool
) -> dict[str, Any]:
    """The value of config.json's `quantization_config`.

    main: of most modules; others: of modules that have another; kept: linear modules left in 16 bits
    legacy: GPTQ's first checkpoint format
    """
    if container == "gptq":
        return _gptq(main, others, kept, legacy)
    if container == "awq":
        return _awq(main, kept)
    return _compressed(main, others, kept)


def further_files(container: str, config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The small file that the container's own tools look for beside config.json, by name."""
    if container == "gptq":
        return {"quantize_config.json": config}
    if container == "awq":
        old = {"zero_point": True, "q_group_size": config["group_size"], "w_bit": config["bits"], "version": "GEMM"}
        return {"quant_config.json": {**old, "modules_to_not_convert": config["modules_to_not_convert"]}}
    return {}


def uneven(schemes: Mapping[str, Scheme | None]) -> list[str]:
    """Groups of modules that vLLM loads as one matrix, but that differ here: "model.layers.0.self_attn.q_proj, ..."."""
    found = []
    for members in FUSED:
        for module in schemes:
            stem, _, last = module.rpartition(".")
            together = [f"{stem}.{name}" for name in members if f"{stem}.{name}" in schemes]
            if last == members[0] and len({schemes[name] for name in together}) > 1:
                found.append(", ".join(together))
    return found


def _gptq(main: Scheme, others: Mapping[str, Scheme], kept: Sequence[str], legacy: bool) -> dict[str, Any]:
    dynamic: dict[str, Any] = {f"-:^{re.escape(module)}$": {} for module in kept if module != "lm_head"}
    for module, scheme in [*others.items(), *_fused(others).items()]:
        dynamic[f"+:^{re.escape(module)}$"] = {
            "bits": scheme.bits,
            "group_size": scheme.group or -1,
            "sym": not scheme.asymmetric,
        }
    return {
        "bits": main.bits,
        "group_size": main.group or -1,
        "desc_act": False,
        "sym": not main.asymmetric,
        "lm_head": "lm_head" not in kept,
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if legacy else "gptq_v2",
        "pack_dtype": "int32",
        **({"dynamic": dynamic} if dynamic else {}),
        "meta": {"quantizer": [f"bitsmith:{__version__}"]},
    }


def _fused(others: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """vLLM's names of the matrices it fuses, where all members have the same scheme."""
    found = {}
    for members, fused in zip(FUSED, _FUSED_NAMES, strict=True):
        for module, scheme in others.items():
            stem, _, last = module.rpartition(".")
            if last == members[0] and all(others.get(f"{stem}.{name}") == scheme for name in members):
                found[f"{stem}.{fused}"] = scheme
    return found


def _awq(main: Scheme, kept: Sequence[str]) -> dict[str, Any]:
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": main.bits,
        "group_size": main.group or -1,
        "zero_point": True,
        "modules_to_not_convert": list(kept),
    }


def _compressed(main: Scheme, others: Mapping[str, Scheme], kept: Sequence[str]) -> dict[str, Any]:
    targets: dict[Scheme, list[str]] = {main: ["Linear"]}
    for module, scheme in others.items():
        targets.setdefault(scheme, []).append(module)
    formats = [_FORMATS[scheme.kind] for scheme in targets]
    return {
        "config_groups": {
            f"group_{number}": _group(scheme, modules) for number, (scheme, modules) in enumerate(targets.items())
        },
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": None,
        "format": formats[0] if len(set(formats)) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "ignore": list(kept),
    }


def _group(scheme: Scheme, modules: list[str]) -> dict[str, Any]:
    kind = "float" if scheme.kind == "float" else "int"
    by = "group" if scheme.group else scheme.scope
    activations = None
    if scheme.input_rounding is not None:
        activations = {
            "num_bits": 8,
            "type": kind,
            "symmetric": True,
            "group_size": None,
            "strategy": scheme.input_rounding.scope,
            "dynamic": scheme.inputs == "dynamic",
        }
    return {
        "targets": modules,
        "weights": {
            "num_bits": scheme.bits,
            "type": kind,
            "symmetric": not scheme.asymmetric,
            "group_size": scheme.group or None,
            "strategy": by,
            "dynamic": False,
        },
        "input_activations": activations,
        "output_activations": None,
        "format": _FORMATS[scheme.kind],
    }
