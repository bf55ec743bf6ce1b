"""Overrides: what a user asks of a model when it is loaded, whatever its file says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bitsmith.quant.input_rounding import InputRounding

if TYPE_CHECKING:
    from bitsmith.models.adapter import Adapter


@dataclass(frozen=True)
class Overrides:
    """Changes of the linear layers of blocks. Embedding, output head and routers stay as they are.

    format: name of the format that matrices get while they are read, see `quant.formats.get_format`; "" for none
    inputs: how inputs of products are rounded, see `InputRounding.parse`; "" as the file says
    adapter: what is added to products; it changes no weight, and is not compared
    """

    format: str = ""
    inputs: str = ""
    adapter: Adapter | None = field(default=None, compare=False)

    @property
    def input_rounding(self) -> InputRounding | None:
        """The rounding that `inputs` names. Raises UsageError for an unknown word."""
        return InputRounding.parse(self.inputs)

    @staticmethod
    def concern(name: str) -> bool:
        """Whether a tensor, by its GGUF name, is a linear layer of a block or a stack of experts."""
        return name.startswith("blk.") and name.endswith(".weight") and "_gate_inp" not in name
