"""`r1v-export completion`: the script with which a shell completes commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

PROGRAM = "r1v-export"
VARIABLE = "_R1V_EXPORT_COMPLETE"
"""By which the script asks the program for completions; click derives the name from the program's."""

_ZSH_COMPLETION_ON = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"
"""zsh completes nothing, and has no `compdef`, until a ~/.zshrc has run compinit; a new one has not."""


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell: commands, options and their values.

    \b
    bash  echo 'eval "$(r1v-export completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(r1v-export completion zsh)"' >> ~/.zshrc
    fish  echo 'r1v-export completion fish | source' >> ~/.config/fish/config.fish
    """
    completion = get_completion_class(shell)
    assert completion is not None, "click has all three"
    script = completion(context.find_root().command, {}, PROGRAM, VARIABLE).source()
    if shell == "zsh":
        head, rest = script.split("\n", 1)  # "#compdef r1v-export", which zsh reads in a file's first line only
        script = f"{head}\n{_ZSH_COMPLETION_ON}\n{rest}"
    click.echo(script)
