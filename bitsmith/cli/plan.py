"""`bitsmith plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitsmith.cli.command import command, flag, model_argument, option, some_options
from bitsmith.cli.options import as_json, revision
from bitsmith.cli.plan_spread import spread_options
from bitsmith.cli.say import print_json, warn
from bitsmith.errors import in_flags
from bitsmith.pipeline.config import QuantizeConfig

if TYPE_CHECKING:
    from rich.console import Console

    from bitsmith.planner.report import DeviceSet, PlanReport
    from bitsmith.planner.runtimes import Runtime

_CHOOSING = (  # options of `quantize` that change what --fit chooses
    *("method", "effort", "rules", "keep", "group_size", "symmetric"),
    *("calibration", "calibration_tokens", "calibration_context", "seed", "calibration_all_experts"),
)
_COLOURS = {
    "fits": "green",
    "less context": "yellow",
    "partly outside": "dark_orange",
    "too large": "red",
    "no runtime": "dim",
    "no cache": "dim",
}


@command("plan")
@model_argument(
    "A folder, a GGUF file, a hub id (only its headers are read), a shape (llama-3-70b), or a number of weights (70B).",
    required=False,
)
@option(
    "--device",
    "-d",
    multiple=True,
    metavar="NAME",
    group="Machine",
    help="rtx-4090, a100-80, m3-max-64, 2x rtx-3090, this, ...; repeatable; default: this.",
)
@option(
    "--memory",
    "-m",
    metavar="SIZE",
    group="Machine",
    help="Memory of a device that is not in the table: 24GB, 24GiB.",
)
@option("--context", "-c", type=int, help="Number of tokens; default: 8192, or the model's context if less.")
@option(
    "--fit",
    metavar="WHERE",
    group="Machine",
    help="The best files for a device or its memory (rtx-4090, this, 24GB), types chosen tensor by tensor: their size "
    "against their expected loss, with mixes beside them. Runs the model to measure it.",
)
@option("--batch", "-b", type=int, default=1, help="Number of sequences at once.")
@option(
    "--kv",
    default="f16",
    metavar="TYPE",
    help="Type of keys and values: f16, bf16, f32, fp8, q8_0, q5_1, q5_0, q4_1, q4_0.",
)
@option(
    "--format", "-f", multiple=True, metavar="FORMAT", help="As --to of quantize; repeatable; default: the usual ones."
)
@option("--runtime", metavar="NAME", help="bitsmith, llama.cpp or vllm; default: one that runs the format there.")
@option(
    "--training",
    multiple=True,
    metavar="METHOD",
    group="Training",
    help="Memory to train with full, lora, qlora, qat (`tune qat --train scales`) or qat-all (`--train all`); "
    "repeatable; all: every method.",
)
@option("--rank", type=int, default=16, group="Training", help="Rank of LoRA's adapters.")
@option("--optimizer", default="adamw", metavar="NAME", group="Training", help="adamw or adamw-8bit.")
@flag("--tokenizer", group="Source", help="Fetch a hub model's tokenizer too; sizes of GGUF files are then exact.")
@option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    group="Output",
    help="Draw memory by context, or with --fit size and loss, into this PNG file (needs matplotlib).",
)
@flag("--list-devices", help="List the devices that have a name, and nothing else.")
@flag("--list-models", help="List the built-in shapes of models, and nothing else.")
@revision
@as_json
@spread_options
@some_options(QuantizeConfig, _CHOOSING, "choosing")
def plan(
    model: str | None,
    device: tuple[str, ...],
    memory: str | None,
    context: int | None,
    fit: str | None,
    batch: int,
    kv: str,
    format: tuple[str, ...],
    runtime: str | None,
    training: tuple[str, ...],
    rank: int,
    optimizer: str,
    tokenizer: bool,
    plot: Path | None,
    list_devices: bool,
    list_models: bool,
    revision: str | None,
    as_json: bool,
    choosing: dict[str, Any],
) -> None:
    """What fits, what it costs, what to choose: before anything is downloaded or quantized."""
    if list_devices or list_models:
        _list(list_devices, as_json=as_json)
        return
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.", click.get_current_context())
    if fit is not None:
        from bitsmith.cli.plan_front import show_front

        to = _container(format, device, memory, training, bool(batch != 1 or runtime or tokenizer))
        config = QuantizeConfig(fit=fit, context=context, kv=kv, revision=revision, **choosing)
        show_front(model, config, to=to, plot=plot, as_json=as_json)
        return
    _refuse(choosing)
    from bitsmith import api
    from bitsmith.planner.render import to_dict
    from bitsmith.planner.training import METHODS

    report = api.plan(
        model,
        devices=device,
        memory=memory,
        context=context,
        batch=batch,
        kv=kv,
        formats=format,
        runtime=runtime,
        training=METHODS if "all" in training else training,
        adapter_rank=rank,
        optimizer=optimizer,
        tokenizer=tokenizer,
        revision=revision,
    )
    if plot is not None:
        _draw(report, plot)
    if as_json:
        print_json(to_dict(report))
    else:
        _print(report)


def _draw(report: PlanReport, plot: Path) -> None:
    from bitsmith.planner.picture import draw

    draw(report, plot)
    warn([f"wrote {plot}"], before="Note")


def _refuse(choosing: dict[str, Any]) -> None:
    """Raise UsageError for options that choose types: there is no budget."""
    if choosing:
        flags = {"rules": "--rule", "symmetric": "--sym"}
        first = next(iter(choosing))
        raise click.UsageError(f"{flags.get(first, '--' + first.replace('_', '-'))} goes with --fit; give both.")


def _list(devices: bool, *, as_json: bool) -> None:
    """Print the known devices, or the built-in shapes of models."""
    from bitsmith.cli import plan_lists

    show = plan_lists.list_devices if devices else plan_lists.list_models
    show(as_json=as_json)


def _container(
    format: tuple[str, ...], device: tuple[str, ...], memory: str | None, training: tuple[str, ...], further: bool
) -> str | None:
    """The container of `--fit`. Raises UsageError for options that do not go with it. further: others are given"""
    for name, given in (("--device", device), ("--memory", memory), ("--training", training)):
        if given:
            raise click.UsageError(f"{name} does not go with --fit, which names the device itself.")
    if further:
        raise click.UsageError(
            "--batch, --runtime and --tokenizer do not go with --fit, which plans one sequence and the usual runtime."
        )
    if len(format) > 1:
        raise click.UsageError("--format is given several times; --fit is for one container.")
    return format[0] if format else None


def _print(report: PlanReport) -> None:
    from bitsmith.cli.drawing import clean, stdout
    from bitsmith.planner.advice import advise

    console = stdout()
    _print_model(report, console)
    for at, device_set in enumerate(report.device_sets):
        _print_devices(report, at, device_set, console)
    if report.training:
        _print_training(report, console)
    for sentence in advise(report):
        console.print(f"- {clean(in_flags(sentence))}", markup=False, soft_wrap=not console.is_terminal)
    warn(report.warnings)


def _print_model(report: PlanReport, console: Console) -> None:
    from bitsmith.cli.drawing import clean, human_bytes
    from bitsmith.planner.cache_memory import cache_bytes

    spec, network, workload = report.spec, report.spec.network, report.workload
    active = "" if not network.experts else f" ({spec.active / 1e9:.3g} B a token)"
    console.print(f"{clean(spec.name)}: {_count(spec.parameters)} weights{active}", style="bold", markup=False)
    console.print(f"from {clean(spec.said)}", markup=False)
    cache = human_bytes(cache_bytes(network, workload.context, batch=workload.batch, type=workload.kv))
    batch = "" if workload.batch == 1 else f" by {workload.batch} sequences"
    console.print(
        f"{network.layers} layers, {network.attention}; {workload.kv} cache of {workload.context:,} tokens{batch}: "
        f"{cache}",
        markup=False,
    )


def _count(weights: int) -> str:
    return f"{weights / 1e9:.4g} B" if weights >= 1e9 else f"{weights / 1e6:.4g} M"


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 20 else f"{speed:.2g}" if speed >= 0.1 else "< 0.1"


def _print_devices(report: PlanReport, at: int, device_set: DeviceSet, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from bitsmith.cli.drawing import human_bytes
    from bitsmith.planner.render import calibrating_of

    device = device_set.device
    each = " each" if device_set.count > 1 else ""
    bandwidth = f", {device.bandwidth / 1e9:,.0f} GB/s{each}" if device.bandwidth else ""
    console.print()
    room = human_bytes(device_set.count * device.usable)
    title = device.title if device_set.name in ("this", device.title) else f"{device_set.name}: {room}"
    console.print(f"{title}{bandwidth}", style="bold", markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("format", "weights", "bits", "loss", "in use", "verdict", "tokens/s"):
        table.add_column(heading, justify="left" if heading in ("format", "verdict") else "right", overflow="fold")
    for row in report.rows:
        verdict = row.verdicts[at]
        loss = "" if row.loss is None else f"{row.loss.plain:.4f}" if row.loss.plain else "0"
        table.add_row(
            row.weights.target,
            human_bytes(row.weights.file or row.weights.total),
            f"{row.bits_per_weight:.2f}",
            loss,
            "" if verdict.kind in ("no runtime", "no cache") else human_bytes(verdict.total),
            Text(verdict.text, style=_COLOURS[verdict.kind]),
            "" if verdict.speed is None else _rate(verdict.speed),
        )
    console.print(table)
    _print_legend(report, at, console)
    calibrating = calibrating_of(report, device_set)
    if calibrating is not None:
        console.print(f"{calibrating.text}.", style="dim", markup=False, soft_wrap=not console.is_terminal)


def _print_legend(report: PlanReport, at: int, console: Console) -> None:
    """What the columns rest on."""
    hows = {row.how for row in report.rows}
    exact = {
        "exact file": "whole files, exact to the byte",
        "exact tensors": "tensors exact to the byte, without the file's header",
        "rule of thumb": "a rule of thumb, bits times weights",
    }
    sizes = "; ".join(text for how, text in exact.items() if how in hows)
    verdicts = [row.verdicts[at] for row in report.rows if row.verdicts[at].kind != "no runtime"]
    runtimes = {verdict.runtime.name: verdict.runtime for verdict in verdicts}
    loss = "loss: mean KLD of our small reference model; larger ones lose several times as much"
    console.print(f"weights: {sizes}. {loss}.", style="dim", markup=False)
    for runtime in runtimes.values():
        console.print(
            f"{runtime.title}: in use: {runtime.error}{_reserve(runtime)}; tokens/s: upper estimate for one sequence, "
            f"{100 * runtime.share:.0f} % of the bandwidth divided by the bytes read for a token.",
            style="dim",
            markup=False,
            soft_wrap=not console.is_terminal,
        )
    if any(verdict.outside for verdict in verdicts):
        console.print("out: layers that must lie in system memory.", style="dim")
    for note in dict.fromkeys(
        f"{row.weights.target}: {in_flags(note)}" for row in report.rows for note in row.weights.notes
    ):
        console.print(note, style="dim", markup=False, soft_wrap=not console.is_terminal)


def _reserve(runtime: Runtime) -> str:
    return f"; it leaves {100 * runtime.reserved:.0f} % of the device alone" if runtime.reserved else ""


def _print_training(report: PlanReport, console: Console) -> None:
    from rich.table import Table

    from bitsmith.cli.drawing import human_bytes
    from bitsmith.planner.render import places_for

    found = report.training

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("training", "weights", "gradients", "optimizer", "activations", "total", "fits"):
        table.add_column(heading, justify="left" if heading in ("training", "fits") else "right", overflow="fold")
    for each in found:
        sizes = (each.weights, each.gradients, each.optimizer, each.activations, each.total)
        name = each.method if each.checkpointing else f"{each.method}, all kept"
        table.add_row(name, *(human_bytes(size) for size in sizes), ", ".join(places_for(report, each)) or "no")
    console.print()
    console.print(table)
    for sentence in dict.fromkeys(sentence for each in found for sentence in each.assumptions):
        console.print(f"  {sentence}", style="dim", markup=False)
