"""`bitsmith plan --list-devices` and `--list-models`: what a plan knows by name."""

from __future__ import annotations

from typing import Any

from bitsmith.cli.say import print_json


def list_devices(*, as_json: bool) -> None:
    """Every device with its memory and bandwidth."""
    from bitsmith.cli.drawing import human_bytes
    from bitsmith.planner.devices import DEVICES

    values: list[dict[str, Any]] = [
        {
            "name": device.name,
            "title": device.title,
            "kind": device.kind,
            "memory": device.memory or None,
            "bandwidth": device.bandwidth or None,
            "source": device.source,
        }
        for device in DEVICES.values()
    ]
    if as_json:
        print_json(values)
        return
    rows = [
        (
            str(each["name"]),
            str(each["title"]),
            human_bytes(each["memory"]) if each["memory"] else "give --memory",
            f"{human_bytes(each['bandwidth'])}/s" if each["bandwidth"] else "",
        )
        for each in values
    ]
    _print(("device", "", "memory", "bandwidth"), rows)


def list_models(*, as_json: bool) -> None:
    """Every built-in shape with its number of weights and its context."""
    from bitsmith.planner.shapes import known_shapes

    values: list[dict[str, Any]] = [
        {
            "name": shape.name,
            "architecture": shape.config.get("model_type"),
            "parameters": shape.parameters,
            "active": shape.active,
            "context": shape.config.get("max_position_embeddings"),
            "source": shape.source,
        }
        for shape in known_shapes().values()
    ]
    if as_json:
        print_json(values)
        return
    rows = [
        (
            each["name"],
            str(each["architecture"] or ""),
            f"{each['parameters'] / 1e9:.3g} B",
            "" if each["active"] is None else f"{each['active'] / 1e9:.3g} B a token",
            f"{each['context']:,}" if each["context"] else "",
        )
        for each in values
    ]
    _print(("model", "architecture", "weights", "active", "context"), rows)


def _print(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.table import Table

    from bitsmith.cli.drawing import cells, stdout

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        numbers = heading in ("memory", "bandwidth", "weights", "active", "context")
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row))
    stdout().print(table)
