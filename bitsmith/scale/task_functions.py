"""The functions of tasks that belong to no other room."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from bitsmith.scale.task import Function, Place, Result
from bitsmith.work.state import State


def sleep(arguments: Mapping[str, Any], inputs: Sequence[State], place: Place) -> Result:
    """Take a time, as a real task would: for simulations. arguments: seconds"""
    time.sleep(float(arguments["seconds"]))
    return {"seconds": arguments["seconds"], "read": len(inputs)}, {}


TASKS: dict[str, Function] = {"sleep": sleep}
