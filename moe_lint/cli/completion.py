"""`moe-lint completion`: the script that makes a shell complete commands, options, rules and files."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  moe-lint completion bash > ~/.local/share/bash-completion/completions/moe-lint
    zsh:   moe-lint completion zsh > a folder of $fpath/_moe-lint
    fish:  moe-lint completion fish > ~/.config/fish/completions/moe-lint.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    # the plain `source`: bash's own one starts a bash to ask for its version
    click.echo(ShellComplete.source(kind(context.find_root().command, {}, "moe-lint", "_MOE_LINT_COMPLETE")), nl=False)
