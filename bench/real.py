"""The main job on real models: quantize, measure loss and speed, hold a conversation.

    make real FOLDER=models        (or: python bench/real.py models)

FOLDER holds originals, which are Hugging Face folders, and GGUF files. Each original is quantized to every format of
FORMATS and measured against itself, and the smallest good file answers QUESTIONS. Each GGUF file is measured for speed
and answers too. Files are written to ./real.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import bitsmith
from bitsmith.cli.drawing import human_bytes, human_seconds, progress_bar
from bitsmith.errors import BitsmithError
from bitsmith.evaluation import Evaluation
from bitsmith.pipeline.result import Quantized

QUESTIONS = ("What is the capital of France?", "And of Italy?", "Write one sentence about the sea.")
TALKS = "q4_k_m, calibrated"  # the file that answers


@dataclass(frozen=True)
class Job:
    """One file to make. name: for the table; to: the target; calibrated: whether the built-in text is used."""

    name: str
    to: str
    calibrated: bool = False


FORMATS = (Job("q8_0", "q8_0"), Job("q4_k_m", "q4_k_m"), Job(TALKS, "q4_k_m", True), Job("q2_k", "q2_k"))


def main() -> None:
    """Every model of the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--windows", type=int, default=40, help="windows of 512 tokens to measure the loss on")
    parser.add_argument("--calibration-tokens", type=int, default=32_768)
    arguments = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder}: there is no such folder; give one that holds models.")
    found = list(models(arguments.folder))
    if not found:
        parser.error(f"{arguments.folder}: no Hugging Face folder and no GGUF file in it.")
    for model in found:
        console.print(f"\n[bold]{model.name}[/bold]\n")
        try:
            talks = original(model, console, arguments) if model.is_dir() else file(model, console)
            converse(talks, console)
        except BitsmithError as error:  # one model that cannot be run does not end the others
            console.print(f"left out: {error}", markup=False)


def models(folder: Path) -> Iterator[Path]:
    """Hugging Face folders and GGUF files in a folder, or the folder itself."""
    if (folder / "config.json").is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if (path / "config.json").is_file() or path.suffix == ".gguf":
            yield path


def original(model: Path, console: Console, arguments: argparse.Namespace) -> Path:
    """Make and measure every file of FORMATS. Returns the file that answers questions."""
    out = Path("real")
    out.mkdir(exist_ok=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("format", "size", "perplexity", "mean KLD", "same top token", "prompt", "generation", "made in"):
        table.add_column(heading, justify="left" if heading == "format" else "right")
    made: dict[str, Path] = {}
    for job in FORMATS:
        path = out / f"{model.name}-{job.name.replace(', ', '-')}.gguf"
        text = "default" if job.calibrated else None
        tokens = arguments.calibration_tokens if job.calibrated else None
        with progress_bar() as report:
            done = bitsmith.quantize(
                model, to=job.to, out=path, force=True, calibration=text, calibration_tokens=tokens, report=report
            )
            lost = bitsmith.evaluate(path, against=model, max_windows=arguments.windows, report=report)
        if not made:
            table.add_row(*first_row(model, lost))
        table.add_row(*row(job.name, done, lost))
        made[job.name] = path
    console.print(table)
    console.print(f"\n{lost.tokens:,} tokens scored, {lost.text}; speeds in tokens a second", style="dim")
    return made[TALKS]


def first_row(model: Path, measured: Evaluation) -> tuple[str, ...]:
    """The row of the original."""
    assert measured.divergence is not None
    size, perplexity = bitsmith.inspect(model).size, measured.divergence.reference_perplexity
    return "original", human_bytes(size), f"{perplexity.value:.2f}", "", "", *speeds(model), ""


def row(name: str, made: Quantized, measured: Evaluation) -> tuple[str, ...]:
    """The row of one file."""
    lost = measured.divergence
    assert lost is not None
    return (
        name,
        human_bytes(made.size),
        f"{measured.perplexity.value:.2f}",
        f"{lost.kld.value:.4f} ± {lost.kld.error:.4f}",
        f"{100 * lost.top1.value:.1f} %",
        *speeds(made.out),
        human_seconds(made.seconds),
    )


def speeds(model: Path) -> tuple[str, str]:
    """Tokens a second for a prompt of 512 and for generation."""
    measured = bitsmith.bench(model, gen=64, repeat=3)
    assert measured.prompt is not None
    assert measured.generation is not None
    return f"{measured.prompt.mean:.0f}", f"{measured.generation.mean:.0f}"


def file(model: Path, console: Console) -> Path:
    """Say the size and the speed of a GGUF file."""
    prompt, generation = speeds(model)
    console.print(f"{human_bytes(model.stat().st_size)}, prompt {prompt}, generation {generation} tokens a second")
    return model


def converse(model: Path, console: Console) -> None:
    """Ask the questions one after the other, as one conversation."""
    loaded = bitsmith.load(model)
    messages: list[dict[str, str]] = []
    started, tokens = time.monotonic(), 0
    console.print(f"\n[dim]A conversation with {model.name}[/dim]")
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answer = loaded.chat(messages, max_tokens=80, temperature=0)
        tokens += len(loaded.tokenizer.encode(answer, add_special=False))
        messages.append({"role": "assistant", "content": answer})
        console.print(f"> {question}\n{answer}", markup=False)
    console.print(f"{tokens} tokens in {human_seconds(time.monotonic() - started)}", style="dim")


if __name__ == "__main__":
    main()
