"""Architectures as data: differences of model families, tensor names, reading and writing of configurations."""

from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.spec import ARCHITECTURES, ArchSpec
from bitsmith.models.arch.tensors import check_tensors, expected_tensors

__all__ = ["ARCHITECTURES", "ArchSpec", "ModelConfig", "Rope", "check_tensors", "expected_tensors"]
