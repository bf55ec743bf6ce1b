"""What a calibration decides about a plan: the importance of columns, and with GPTQ the codes of every block."""

from __future__ import annotations

from collections.abc import Iterator

from bitsmith.arch.groups import linear_groups
from bitsmith.arch.names import gguf_name
from bitsmith.calibration.importance import Importance
from bitsmith.calibration.run import Prepared
from bitsmith.driver import Calibrated
from bitsmith.errors import UsageError
from bitsmith.formats.base import Format
from bitsmith.progress import Report, silent
from bitsmith.recipe.plan import Plan
from bitsmith.tensor import QuantTensor


def decide(
    plan: Plan,
    prepared: Prepared,
    importance: Importance,
    method: str,
    *,
    memory: int | None = None,
    report: Report = silent,
) -> Calibrated:
    """How `plan` is to be carried out.

    prepared: with its tokens read, where the method is gptq; importance: of the original model
    method: "nearest" weighs columns; "gptq" rounds the linears of all blocks block by block, each on the inputs that
        the quantized blocks before it give, and weighs the columns of the others
    """
    columns = importance.by_output([tensor.info for tensor in plan.tensors])
    if method == "nearest":
        return Calibrated(importance=columns)
    outputs, formats = _block_linears(plan)
    return Calibrated(columns, frozenset(outputs.values()), _rounded(plan, prepared, outputs, formats, memory, report))


def check_method(prepared: Prepared | None, method: str) -> None:
    """Raise UsageError where a method needs more of the calibration than it can give."""
    if method == "nearest":
        return
    if prepared is None:
        raise UsageError(f"--method {method} needs --calibration: default (the built-in text), a text, or self.")
    if prepared.request is None:
        raise UsageError(
            f"--method {method} needs a text to run the model on; {prepared.record.source} is an importance file, "
            "without activations. Give --calibration default, or a text."
        )


def _block_linears(plan: Plan) -> tuple[dict[str, str], dict[str, Format]]:
    """Output names and formats of the linears of all blocks that are to be rounded, by GGUF name without ".weight"."""
    config = plan.checkpoint.config
    linears = {name for group in linear_groups(config) for name in group.linears}
    outputs: dict[str, str] = {}
    formats: dict[str, Format] = {}
    for tensor in plan.tensors:
        name = (gguf_name(tensor.info.name) or tensor.info.name).removesuffix(".weight")
        if tensor.format is None or name.split(".")[-1] not in linears or not name.startswith("blk."):
            continue
        outputs[name], formats[name] = tensor.info.name, tensor.format
    return outputs, formats


def _rounded(
    plan: Plan,
    prepared: Prepared,
    outputs: dict[str, str],
    formats: dict[str, Format],
    memory: int | None,
    report: Report,
) -> Iterator[tuple[str, QuantTensor]]:
    from bitsmith.calibration.sequential import gptq_blocks

    assert prepared.tokens is not None
    for linear in gptq_blocks(plan.checkpoint, prepared.tokens, formats, memory=memory, report=report):
        yield outputs[linear.name], QuantTensor(formats[linear.name], linear.codes, linear.params)
