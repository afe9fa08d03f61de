"""`ggm completion`: complete commands and flags in a shell."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib import import_module

from ggm.commands import COMMANDS
from ggm.commands.flags import Flags

_SCRIPT = """\
_ggm() {{
    local words="{commands}"
    if (( COMP_CWORD > 1 )); then
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _ggm ggm
"""


@dataclass(frozen=True)
class CompletionOptions:
    """Print a script that completes commands and flags in a shell.

    bash:  eval "$(ggm completion)"
    zsh:   autoload -U bashcompinit && bashcompinit && eval "$(ggm completion)"
    """


FLAGS = (Flags(CompletionOptions),)


def run(options: argparse.Namespace) -> None:
    """Print the script; file names are completed as usual."""
    cases = []
    for name in COMMANDS:
        module = import_module(f"ggm.commands.{name.replace('-', '_')}")
        flags = {flag for part in module.FLAGS for flag in part.options()}
        cases.append(f'            {name}) words="{" ".join(sorted(flags))} --help" ;;')
    print(_SCRIPT.format(commands=" ".join(COMMANDS), cases="\n".join(cases)), end="")
