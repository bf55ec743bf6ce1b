"""`bitsmith serve`."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitsmith.cli.command import command, config_options, model_argument_or_option
from bitsmith.cli.core import note_missing_core
from bitsmith.cli.options import LoadingOptions, no_short_t
from bitsmith.errors import UnsupportedError, UsageError
from bitsmith.system.options import option

if TYPE_CHECKING:
    from bitsmith.runtime.language_model import LanguageModel
    from bitsmith.serve.hosts import Hosts

_CONTEXT = 4096  # tokens of a text, if --context is not given and the model has more
_SWITCH = 2e-4  # seconds after which Python hands over between threads: the engine must not wait for texts to be sent


@dataclass(frozen=True)
class ServeOptions:
    """Where `serve` listens, and how much it does at the same time."""

    host: str = option("127.0.0.1", group="Options", metavar="ADDRESS", help="Address to listen on.")
    port: int = option(8080, group="Options", help="Port to listen on; 0: a free one.")
    api_key: str | None = option(
        None, group="Options", metavar="KEY", help="Key that clients must give; default: BITSMITH_API_KEY, or none."
    )
    no_auth: bool = option(False, group="Options", help="Listen on an address that others reach, without a key.")
    allowed_host: Sequence[str] = option(
        (),
        group="Options",
        metavar="NAME",
        help="Further name by which clients may call the server, as behind a proxy; may be given several times.",
    )
    parallel: int = option(4, group="Options", help="Texts that are computed at the same time.")
    queue: int = option(64, group="Options", help="Requests that may wait; further ones are refused.")
    lookup: int = option(
        0,
        group="Options",
        metavar="N",
        help="Guess up to N tokens a step from each text so far: the same answers, faster where they repeat; 0: none.",
    )
    name: str | None = option(None, group="Options", metavar="NAME", help="The model's name for clients.")


@command("serve")
@model_argument_or_option("The model to serve: any model name or file.")
@config_options(ServeOptions, "options")
@config_options(LoadingOptions, "loading")
@no_short_t
def serve(model: str, options: ServeOptions, loading: LoadingOptions) -> None:
    """Answer other programs in OpenAI's and Anthropic's forms, and a browser with a page to chat.

    --context is what each text may have; all --parallel ones have room for it. Ctrl-C ends the server.
    """
    import os
    import sys

    key = options.api_key or os.environ.get("BITSMITH_API_KEY") or None
    _check(options, key)
    if loading.context is not None and loading.context < 1:
        raise UsageError(f"--context={loading.context}: expected 1 or more tokens.")
    try:
        import uvicorn

        from bitsmith.serve.app import Served, make_app
        from bitsmith.serve.connection import server_config
    except ImportError as error:
        raise UnsupportedError(
            f"the server needs packages that are not installed ({error.name}): pip install 'bitsmith[serve]'"
        ) from error
    from bitsmith.cli.drawing import stderr
    from bitsmith.serve.engine import Engine, Limits

    listening = _listen(options)
    note_missing_core()
    loaded = _load(model, loading, options.parallel)
    _note_template(loaded)
    engine = Engine(loaded, Limits(options.parallel, options.queue, lookup=options.lookup))
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    stderr().print(
        f"{loaded.name}: http://{shown}:{port}/v1 (OpenAI), http://{shown}:{port} (Anthropic, and a page to chat); "
        f"{options.parallel} texts of {engine.context:,} tokens at the same time. Ctrl-C ends it.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    served = Served(engine, options.name or loaded.name, key, _format(model, loading), _hosts(options))
    app = make_app(served)
    sys.setswitchinterval(_SWITCH)
    config = server_config(app, log_level="warning", timeout_graceful_shutdown=2)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        engine.close()


def _note_template(model: LanguageModel) -> None:
    """Say at once where conversations will fail: the template is a program that comes with the model."""
    from bitsmith.cli.drawing import stderr
    from bitsmith.models.tokenizer.chat import TemplateError

    if not model.tokenizer.has_chat_template:
        return
    try:
        model.tokenizer.chat([{"role": "user", "content": "Hello"}])
    except TemplateError as error:
        words = f"warning: {error.fault}. Conversations will fail; /v1/completions and /v1/embeddings work."
        stderr().print(words, markup=False, soft_wrap=True)


def _check(options: ServeOptions, key: str | None) -> None:
    """Raise UsageError for options that make no sense, before the model is loaded."""
    for name, value in (("parallel", options.parallel), ("queue", options.queue)):
        if value < 1:
            raise UsageError(f"--{name}={value}: expected 1 or more.")
    if not 0 <= options.port < 65536:
        raise UsageError(f"--port={options.port}: expected 0 to 65535.")
    from bitsmith.serve.hosts import check_names

    check_names(options.allowed_host or ())
    if key is None and not options.no_auth and not _local(options.host):
        raise UsageError(
            f"--host={options.host} can be reached by others: give --api-key, or --no-auth if everyone may ask."
        )


def _hosts(options: ServeOptions) -> Hosts | None:
    """Names of the server. Where it listens for others and no names are given, they may call it as they like."""
    from bitsmith.serve.hosts import Hosts

    allowed = tuple(options.allowed_host or ())
    return Hosts((*allowed, options.host)) if allowed or _local(options.host) else None


def _local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(options: ServeOptions) -> socket.socket:
    """The socket, before the model is loaded. Raises UsageError where the address or port cannot be had."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except (OSError, UnicodeError) as error:
        listening.close()
        port = isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EACCES)
        other = "--port (0: a free one)" if port else "--host, an address of this machine"
        words = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"--host={options.host} --port={options.port}: {words}; give another {other}.") from error
    return listening


def _format(model: str, loading: LoadingOptions) -> str:
    """How most of the weights are stored, and their size, for people."""
    from bitsmith.cli.drawing import human_bytes
    from bitsmith.models.checkpoint import open_checkpoint

    sizes: dict[str, int] = {}
    for info in open_checkpoint(model, revision=loading.revision).source.tensors.values():
        sizes[info.layout] = sizes.get(info.layout, 0) + info.nbytes
    most = max(sizes, key=lambda layout: sizes[layout])
    return f"{most.rpartition('/')[2]}, {human_bytes(sum(sizes.values()))}"


def _load(model: str, loading: LoadingOptions, parallel: int) -> LanguageModel:
    """The model. Raises UsageError where its cache does not fit into memory."""
    from bitsmith import api
    from bitsmith.models.checkpoint import open_checkpoint
    from bitsmith.runtime.cache_size import cache_bytes
    from bitsmith.system.memory import available_memory

    checkpoint = open_checkpoint(model, revision=loading.revision)
    context = loading.context or min(checkpoint.config.context, _CONTEXT)
    wanted = parallel * cache_bytes(checkpoint.config, context, loading.cache_type)
    room = available_memory()
    weights = sum(info.nbytes for info in checkpoint.source.tensors.values())
    if room is not None and wanted + weights > room:
        raise UsageError(
            f"the model ({weights / 1e9:.2f} GB) and the cache of --parallel={parallel} texts of --context={context} "
            f"tokens ({wanted / 1e9:.2f} GB) do not fit into the {room / 1e9:.2f} GB of free memory; lower either. The "
            f"model itself was made for {checkpoint.config.context:,} tokens."
        )
    return api.load(model, **{**vars(loading), "context": context})
