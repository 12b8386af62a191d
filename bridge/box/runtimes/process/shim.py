"""The shim: a small shell that runs an instance's command and leads its process group.

- The shim waits for a line on stdin before it starts the command. Limits hold from the command's
  first instruction, and the Box can write down the process before it does anything. If the Box
  dies before that, the shim ends without running the command.
- The shim outlives the Box and writes the exit code to a file, so that the next Box process can
  read how an instance ended.
- The shim ends a fenced instance before the lease of its host expires, and at once when it can no
  longer check the lease: its guard kills the whole group, unless the guard itself gets a SIGKILL.
- The shim and everything that the instance starts carry the instance's label in the environment.
"""

from __future__ import annotations

import contextlib
import os
import re
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
trap : HUP INT QUIT TERM USR1 USR2
exec 3>&2 2>/dev/null
if [ -n "$BOX_FENCE" ]; then
  (trap "" HUP INT QUIT TERM USR1 USR2
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
# The shim's own stderr is discarded: a shell's "Killed" would pass for the instance's last line.
# The guard waits with `read` on the pipe of stdin, of which it holds both ends. With `sleep`, bash
# would retry for 15 s where no process can be forked. dash has no `read -t`: it fails with status 2
# at once, and `sleep` waits instead.
_EXIT: Final = "exit"
_NEVER: Final = "never\n"
_FENCED: Final = "fenced\n"
_CODE: Final = re.compile(r"([0-9]{1,9})\n")
_SIGNALLED: Final = 128  # the exit code of a command that signal n killed is this plus n


class _Shim(subprocess.Popen[bytes]):
    """A Popen that may be dropped while its process lives, without a ResourceWarning.

    A shim outlives its Box, and a start may be cancelled. A shim that still waits for its line
    ends when this object goes, because its stdin is closed.
    """

    def __del__(self) -> None:
        if self.stdin is not None:
            self.stdin.close()
        # Popen.__del__ has a later call reap the child. Its `_warn` argument is not documented,
        # but exists since Python 3.6; a warnings filter is gone when the interpreter ends.
        super().__del__(_warn=lambda *_, **__: None)  # type: ignore[call-arg]


def spawn(
    directory: Path,
    command: Sequence[str],
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    fence: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start the shim in a session of its own. A line on its stdin starts `command`.

    stdout and stderr are files in `directory`: a pipe would kill the instance with the Box. Raises
    OSError, or ValueError for a NUL byte in `command` or `env`.
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
    """How the instance ended: from the file that the shim wrote, else from the shim's own end.

    `returncode` is the shim's, None if it is unknown; `killed` says that this Box killed it. The
    instance can write to the file as well, so any content is valid input.
    """
    try:
        text = (directory / _EXIT).read_text(errors="replace")
    except OSError:
        text = ""
    if text == _NEVER:
        return Exit(ran=False)
    if text == _FENCED:
        return Exit(signal=signal.SIGKILL, fenced=True)
    if match := _CODE.fullmatch(text):
        code = int(match[1])
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
    living = {}
    for pid in psutil.pids():
        if group_of(pid) != pid:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            environ = psutil.Process(pid).environ()
            label, identity = Path(environ.get(LABEL, "")), identify(pid)
            if label.parent == root and identity is not None:
                living[label.name] = LivingInstance(identity, _port(environ.get("PORT", "")))
    return living


def command_pid(pid: int) -> int | None:
    """The child of the shim that runs the command; None before its exec, when it looks like the
    shim, and after its end.
    """
    with contextlib.suppress(OSError):
        like = _command_line(pid)
        return next((child for child in children(pid) if _command_line(child) != like), None)
    return None


def signal_command(pid: int, number: int) -> bool:
    """Signal the command of the shim; False if it does not run. No other process is signalled."""
    command = command_pid(pid)
    if command is None:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        pidfd = os.pidfd_open(command)
        try:
            if command == command_pid(pid):  # else another process may have got its number
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
    return True


def _port(text: str) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0


def _command_line(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
