"""`completion`: the script that completes words in a shell."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE

# A file in fpath is the body of the function of its name; a sourced one has to register.
_ZSH: Final = """
if [ "$funcstack[1]" = "_box-bridge" ]; then
  _cyclopts_box-bridge "$@"
else
  compdef _cyclopts_box-bridge box-bridge
fi
"""


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell that you use.")], /
) -> int:
    """Print what completes words and names in your shell.

    It completes verbs, flags and their values, and the names of services, hosts
    and instances, which it asks a Box for. Without NATS it completes no names. For
    bash this line goes to ~/.bashrc, for the others the file where the shell looks:

        eval "$(box-bridge completion bash)"
        box-bridge completion zsh > ~/.zsh/completions/_box-bridge
        box-bridge completion fish > ~/.config/fish/completions/box-bridge.fish

    For zsh the directory must be in `fpath`, before `compinit` in ~/.zshrc.
    """
    from bridge.cli.app import NAME, build_app

    script = build_app(complete=True).generate_completion(prog_name=NAME, shell=shell)
    print(script + (_ZSH if shell == "zsh" else ""))
    return DONE
