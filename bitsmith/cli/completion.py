"""`bitsmith completion`."""

from __future__ import annotations

import click

from bitsmith.cli.command import Argument, command


@command("completion")
@click.argument("shell", cls=Argument, type=click.Choice(["bash", "zsh", "fish"]), help="bash, zsh or fish.")
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands and options in your shell.

    bash and zsh: add eval "$(bitsmith completion bash)" to ~/.bashrc, or the same with zsh to ~/.zshrc.

    fish: bitsmith completion fish > ~/.config/fish/completions/bitsmith.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None  # one of click's own
    click.echo(kind(ctx.find_root().command, {}, "bitsmith", "_BITSMITH_COMPLETE").source())
