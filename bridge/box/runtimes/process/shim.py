"""The small shell under which an instance runs, and which leads its process group.

- It waits for a word before it starts the command, so that limits hold from the first instruction,
  and so that the Box can write down which process it is before it does anything; should the Box die
  meanwhile, the shim ends without running it.
- It outlives the Box and leaves the exit code in a file, so that an instance that ended while no
  Box looked can still say how.
- It ends a fenced instance before the lease of its host does, and at once when it cannot see to
  that any more: whatever ends the guard but a SIGKILL has it end the whole group first.
- It carries the instance's label in its environment, and so does all that the instance starts.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from bridge.box.runtimes.base import Exit, LivingInstance
from bridge.box.runtimes.logs import STDERR, STDOUT
from bridge.box.runtimes.process.process_groups import children, group_of
from bridge.box.runtimes.process_identity import identify

LABEL: Final = "BOX_INSTANCE_DIR"

_SHELL: Final = ("/bin/sh",)
_SCRIPT: Final = """
read -r _ || { echo never >"$BOX_INSTANCE_DIR/exit"; exit 0; }
trap : HUP INT QUIT TERM
exec 3>&2 2>/dev/null
if [ -n "$BOX_FENCE" ]; then
  (trap "" HUP INT QUIT TERM
  trap 'echo fenced >"$BOX_INSTANCE_DIR/exit"; kill -KILL 0' EXIT
  PATH=$PATH:/usr/bin:/bin
  exec <>/proc/$$/fd/0
  while read -r -t 0.5 _; [ $? -ne 2 ] || sleep 0.5; do
    read -r now _ </proc/uptime && read -r until <"$BOX_FENCE" || exit
    [ "${now%.*}" -lt "$until" ] || exit
  done) 3>&- &
  fence=$!
fi
(exec "$@" </dev/null 2>&3 3>&-)
code=$?
[ -z "$fence" ] || kill -KILL "$fence"
echo "$code" >"$BOX_INSTANCE_DIR/exit"
exit "$code"
"""
# Its own stderr goes nowhere: "Killed" would pass for the instance's last words. The guard waits by
# `read`, on the pipe of the word, of which it holds both ends: where no process may be forked, bash
# would try to make a `sleep` for 15 s. dash knows no -t, which is status 2, but fails at once.
_EXIT: Final = "exit"
_NEVER: Final = "never\n"
_FENCED: Final = "fenced\n"
_SIGNALLED: Final = 128  # a shell's code for a command that signal n killed is this plus n


class _Shim(subprocess.Popen[bytes]):
    """A shim may outlive its Box, and a start may be called off: to let go of one that lives is no
    mistake, and nothing to warn of. One that was never told to go ends then.
    """

    def __del__(self) -> None:
        if self.stdin is not None:
            self.stdin.close()
        # It has the child reaped later. That it takes what warns is not in its documentation, but
        # it has since Python 3.6, and a filter of warnings cannot be had as the interpreter ends.
        super().__del__(_warn=lambda *_, **__: None)  # type: ignore[call-arg]


def spawn(
    directory: Path,
    command: Sequence[str],
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    fence: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start the shim in a session of its own; a line on its stdin lets `command` go.

    stdout and stderr are files in `directory`: a pipe would kill the instance with the Box. Raises
    OSError.
    """
    (directory / _EXIT).unlink(missing_ok=True)
    with (directory / STDOUT).open("ab") as stdout, (directory / STDERR).open("ab") as stderr:
        return _Shim(
            [*_SHELL, "-c", _SCRIPT, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env={**env, LABEL: str(directory), **({"BOX_FENCE": str(fence)} if fence else {})},
            start_new_session=True,
        )


def read_exit(directory: Path, returncode: int | None, *, killed: bool) -> Exit:
    """How the instance ended: as its shim wrote, or as the shim itself did (`returncode`, None if
    nobody knows; `killed` if it was we who killed it).
    """
    try:
        text = (directory / _EXIT).read_text()
    except OSError:
        text = ""
    if text == _NEVER:
        return Exit(ran=False)
    if text == _FENCED:
        return Exit(signal=signal.SIGKILL, fenced=True)
    if text.endswith("\n") and text.strip().isdigit():
        code = int(text)
    elif returncode is None:
        return Exit(signal=signal.SIGKILL) if killed else Exit(code=None)
    elif returncode >= 0:
        code = returncode  # the file could not be written
    else:
        return Exit(signal=-returncode)
    killed_by = code - _SIGNALLED
    return Exit(signal=killed_by) if 0 < killed_by < signal.NSIG else Exit(code=code)


def list_living(root: Path) -> dict[str, LivingInstance]:
    """The living instances under `root`, by id: their shims lead sessions and carry the label."""
    found = {}
    for pid in psutil.pids():
        if group_of(pid) != pid:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            environ = psutil.Process(pid).environ()
            label, identity = Path(environ.get(LABEL, "")), identify(pid)
            if label.parent == root and identity is not None:
                port = environ.get("PORT", "")
                found[label.name] = LivingInstance(identity, int(port) if port.isdigit() else 0)
    return found


def has_command(pid: int) -> bool:
    """Whether a child of the shim's is the command: before its exec it looks like the shim."""
    with contextlib.suppress(OSError):
        like = _command_line(pid)
        return any(_command_line(child) != like for child in children(pid))
    return False


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
