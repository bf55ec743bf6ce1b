"""How much memory the experts of a model may take, where the whole model does not fit."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bitsmith.errors import UnsupportedError
from bitsmith.models.arch.tensors import file_tensors
from bitsmith.runtime.types import PACKED
from bitsmith.system.memory import available_memory
from bitsmith.system.sizes import human_bytes

if TYPE_CHECKING:
    from bitsmith.models.checkpoint import Checkpoint

_LOG = logging.getLogger("bitsmith.runtime.load.choice")  # the command line shows it, see `cli.notices`
RESERVE = 1 / 8  # share of the free memory that is left for keys, values and activations


def expert_memory(checkpoint: Checkpoint) -> int | None:
    """Bytes that packed experts may take; None if the model fits as a whole, or has none that can be read on demand.

    Raises UnsupportedError if not even the experts of one token fit. What the user should know goes to the log.
    """
    config, room = checkpoint.config, available_memory()
    if config.experts is None or room is None:
        return None
    experts = others = 0
    for name in file_tensors(config, checkpoint.source.tensors, checkpoint.naming).wanted:
        info = checkpoint.source.tensors.get(name)
        if info is None:
            continue  # `check_tensors` will say so
        if "_exps." in name and info.layout in PACKED:
            experts += info.nbytes
        elif info.layout in PACKED:
            others += info.nbytes
    left = round(room * (1 - RESERVE)) - others
    if not experts or experts <= left:
        return None
    one = experts * config.experts.used // config.experts.count
    if left < one:
        raise UnsupportedError(
            f"{checkpoint.source.path}: a token reads {human_bytes(others + one)} of weights, and "
            f"{human_bytes(room)} of memory are free. Close other programs, or quantize to fewer bits."
        )
    _LOG.warning(
        "%s: its experts take %s, and %s of memory are left for them; those used last stay in memory, others are read "
        "from the file when a token needs them",
        *(checkpoint.name, human_bytes(experts), human_bytes(left)),
    )
    return left
