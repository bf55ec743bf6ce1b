"""`bitsmith run`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bitsmith.cli.command import command, config_options, model_argument_or_option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.notices import hide_notices
from bitsmith.cli.options import LoadingOptions, no_short_t, token_limit
from bitsmith.cli.prompt import argument_text, prompt_text
from bitsmith.errors import UsageError
from bitsmith.models.ends import NO_END_TOKEN
from bitsmith.runtime.sampling import Sampling
from bitsmith.system.options import option

if TYPE_CHECKING:
    from bitsmith.runtime.language_model import LanguageModel
    from bitsmith.runtime.text_stream import TextStream

_APPLIED = "The model's chat template is applied; --raw continues the text as it stands."
_NONE = "The model has no chat template: the text is continued as it stands."
_RAW = "The text is continued as it stands."


@dataclass(frozen=True)
class RunOptions:
    """What `run` is asked, and how it answers."""

    prompt: str | None = option(None, "-p", group="Options", help="What to answer; -: standard input.")
    file: Path | None = option(
        None, "-f", group="Options", metavar="FILE", help="A UTF-8 text file, read after --prompt; -: standard input."
    )
    system: str | None = option(None, group="Options", help="A system message before the prompt.")
    raw: bool = option(False, group="Options", help="Continue the text as it stands, without the chat template.")
    max_tokens: int = option(
        512, "-n", group="Options", help="Tokens to generate, at most; -1: until the text ends or the context is full."
    )
    lookup: int = option(
        0,
        group="Options",
        metavar="N",
        help="Guess up to N tokens a step from the text so far: the same text, faster where it repeats; 0: none.",
    )
    quiet: bool = option(False, "--quiet", "-q", group="Output", help="No notes and no figures on stderr.")
    as_json: bool = option(False, "--json", group="Output", help="Print the text, its counts and times as JSON.")


@command("run")
@model_argument_or_option("The model to run: any model name or file.")
@config_options(RunOptions, "options")
@config_options(Sampling, "sampling")
@config_options(LoadingOptions, "loading")
@no_short_t
def run(model: str, options: RunOptions, sampling: Sampling, loading: LoadingOptions) -> None:
    """Answer one prompt; the text is streamed to standard output.

    The prompt goes through the model's chat template where it has one. What is piped in is added after --prompt and
    --file: cat notes.txt | bitsmith run MODEL -p "Summarize:"
    """
    from bitsmith import api
    from bitsmith.cli.speaking import cut, figures, write_pieces

    limit = token_limit(options.max_tokens)
    text = prompt_text(options.prompt, options.file)
    if options.quiet:
        hide_notices()
    else:
        note_missing_core()
    loaded = api.load(model, **vars(loading))
    stream = _stream(loaded, text, options, limit, sampling)
    if not options.quiet:
        sys.stderr.write("".join(f"{note}\n" for note in _notes(loaded, options)))
        sys.stderr.flush()
    if options.as_json:
        click.echo(json.dumps({"model": loaded.name, "text": "".join(stream), **stream.stats.to_dict()}, indent=2))
    else:
        write_pieces(stream)
    if not options.quiet:
        why = cut(stream.stats)
        sys.stderr.write(f"{figures(stream.stats)}{f' ({why})' if why else ''}\n")


def _stream(
    loaded: LanguageModel, text: str | None, options: RunOptions, limit: int | None, sampling: Sampling
) -> TextStream:
    """The model's answer, or the text's continuation. Raises UsageError where there is nothing to answer."""
    if options.raw or not loaded.has_chat_template:
        if options.system is not None:
            raise UsageError("--system needs the chat template: leave out --raw, and take a model that has one.")
        return loaded.stream(text or "", max_tokens=limit, lookup=options.lookup, sampling=sampling)
    if not text:
        raise UsageError(
            "the prompt is empty: give --prompt TEXT, --file FILE or a text on standard input; "
            "bitsmith chat talks with a model, --raw begins a text of its own."
        )
    spoken = argument_text(options.system or "", "--system")
    system = [{"role": "system", "content": spoken}] if spoken else []
    messages = [*system, {"role": "user", "content": text}]
    return loaded.stream_chat(messages, max_tokens=limit, lookup=options.lookup, sampling=sampling)


def _notes(loaded: LanguageModel, options: RunOptions) -> list[str]:
    """What the user should know before the text comes."""
    way = _RAW if options.raw else _APPLIED if loaded.has_chat_template else _NONE
    return [way, *([] if loaded.tokenizer.end_ids else [f"Note: {NO_END_TOKEN}"])]
