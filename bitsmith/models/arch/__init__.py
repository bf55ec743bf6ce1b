"""Architectures as data: what sets model families apart, tensor names, configurations in and out."""

from bitsmith.models.arch.config import ModelConfig, Rope
from bitsmith.models.arch.spec import ARCHITECTURES, ArchSpec
from bitsmith.models.arch.tensors import check_tensors, expected_tensors

__all__ = ["ARCHITECTURES", "ArchSpec", "ModelConfig", "Rope", "check_tensors", "expected_tensors"]
