"""The shim: a small shell that runs an instance's command and leads its process group.

- The shim runs a small program (exec_command.py), which becomes the command. That program gets the
  command and its environment through stdin, so the shell's variables and the instance's never mix.
- That program waits for a line on stdin before it becomes the command. Limits hold from the
  command's first instruction, and the Box can write down the process before it does anything. If
  the Box dies before that, the shim ends without running the command.
- The shim outlives the Box and writes the exit code to a file, so that the next Box process can
  read how an instance ended. The Box that started the shim needs no file: it gets the exit code.
- The shim starts with an environment of its own, and without capabilities. A shim that runs its
  command as another user keeps those for that. The command has none.
- The Box's files are in the directory of the instance, beside the one that belongs to the instance.
  Shim and command get them as open files.
- The shim ends a fenced instance before the lease of its host expires, and at once when it can no
  longer check the lease: its guard kills the whole group, unless the guard itself gets a SIGKILL.
- The shim and everything that the instance starts carry the instance's label in the environment.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import psutil

from bridge import descriptors
from bridge.box.runtimes.base import Exit, LivingInstance
from bridge.box.runtimes.logs import STDERR, STDOUT
from bridge.box.runtimes.process import exec_command
from bridge.box.runtimes.process.account import Account
from bridge.box.runtimes.process.process_groups import children, group_of
from bridge.box.runtimes.process_identity import identify
from bridge.private_files import let_pass, make_private_directory, opened, read_end
from bridge.process_rights import RestrictedThreads

LABEL: Final = "BOX_INSTANCE_DIR"
FILES: Final = "files"
"""The directory that belongs to the instance, in the one with the Box's files about it."""


def _compiled(module: ModuleType) -> str:
    """The file to run a module from: its bytecode, which starts faster, where that is current."""
    assert module.__file__ is not None
    cached = module.__cached__
    return cached if cached and is_current(Path(cached), Path(module.__file__)) else module.__file__


def is_current(bytecode: Path, source: Path) -> bool:
    """Whether `bytecode` was compiled from `source` as it is now.

    An import checks that, but running the file does not. Where Python may not write bytecode, old
    files stay there after an upgrade.
    """
    try:
        head, stat = bytecode.read_bytes()[:16], source.stat()
    except OSError:
        return False
    compiled_from = struct.pack("<LL", int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF)
    return head == importlib.util.MAGIC_NUMBER + bytes(4) + compiled_from


_SHELL: Final = ("/bin/sh",)
_SCRIPT: Final = """
trap : HUP INT QUIT TERM USR1 USR2
exec 3>&2 2>/dev/null 4>>"/proc/self/fd/$BOX_EXIT"
fence=
if [ -n "$BOX_FENCE" ]; then
  (trap "" HUP INT QUIT TERM USR1 USR2
  trap 'echo fenced >&4; kill -KILL 0' EXIT
  exec <>/proc/$$/fd/1
  while read -r -t 0.5 _; [ $? -ne 2 ] || sleep 0.5; do
    for try in 1 2 3; do
      { read -r until && read -r again; } <"$BOX_FENCE" || exit
      [ "$until" != "$again" ] || break
    done
    [ "$until" = "$again" ] && read -r now _ </proc/uptime || exit
    [ "${now%.*}" -lt "$until" ] || exit
  done) 3>&- &
  fence=$!
fi
(ulimit -S -n "$BOX_FILES" 2>/dev/null; exec "$@") 2>&3 3>&-
code=$?
[ -z "$fence" ] || kill -KILL "$fence"
echo "$code" >&4
exit "$code"
"""
# The Box overwrites the fence in place: two times that differ were read in the middle of a write.
# The shim's own stderr is discarded: a shell's "Killed" would pass for the instance's last line.
# The guard waits with `read` on a pipe of which it holds both ends. With `sleep`, bash would retry
# for 15 s where no process can be forked. dash has no `read -t`: it fails with status 2 at once,
# and `sleep` waits instead.
_PATH: Final = "/usr/bin:/bin"  # for the guard's `sleep`
_EXEC_COMMAND: Final = (sys.executable, "-I", "-S", _compiled(exec_command))
_EXEC_LINE: Final = b"".join(os.fsencode(word) + b"\0" for word in _EXEC_COMMAND)
_EXIT: Final = "exit"
_EXIT_SIZE: Final = 64  # bytes of the exit file that are read
_NEVER: Final = exec_command.NEVER.decode()
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


def start_blocker(threads: RestrictedThreads) -> str | None:
    """Why no shim can be started from `threads`, as under a root whose Python is in the home
    directory of another user. Raises OSError.
    """
    files = (sys.executable, _compiled(exec_command))
    closed = [file for file in files if not threads.run(functools.partial(_is_readable, file))]
    if not closed:
        return None
    return (
        f"instances have no capabilities, and without them this user may not read {closed[0]}: "
        "install box-bridge where its user may read it, as in /opt"
    )


def _is_readable(file: str) -> bool:
    return os.access(file, os.R_OK)


def make_directories(directory: Path, user: Account | None) -> None:
    """Make the directory with the Box's files about an instance, and the instance's own in it.

    The instance's belongs to `user`, if it runs as another user. Raises OSError.
    """
    own = directory / FILES
    for each in (directory.parent, directory, own):
        make_private_directory(each)
    if user is not None:
        os.chown(own, user.uid, user.gid)
        for each in (directory.parent.parent, directory.parent, directory):
            let_pass(each)


def spawn(
    directory: Path,
    command: Sequence[str],
    *,
    cwd: str | Path,
    env: Mapping[str, str],
    fence: Path | None = None,
    memory: int = 0,
    user: Account | None = None,
    threads: RestrictedThreads | None = None,
) -> subprocess.Popen[bytes]:
    """Start the shim in a session of its own. A line on its stdin starts `command` with `env`.

    `memory` is the limit in bytes; 0 means no limit. stdout and stderr are files in `directory`: a
    pipe would kill the instance with the Box. One of `threads` starts the shim, which gets the
    rights of that thread. Raises OSError, or ValueError for what no process can get: a NUL byte,
    text that is not Unicode, or a name with "=" in it.
    """
    label = {LABEL: str(directory / FILES)}
    variables = {os.fsencode(name): os.fsencode(value) for name, value in {**env, **label}.items()}
    payload = exec_command.payload(
        memory, [os.fsencode(word) for word in command], variables, user.ids if user else ()
    )
    with contextlib.ExitStack() as stack:
        stdout, stderr, end = (
            stack.enter_context(opened(directory / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
            for name in (STDOUT, STDERR, _EXIT)
        )
        os.ftruncate(end, 0)
        own = {
            **label,
            "PATH": _PATH,
            "PORT": env.get("PORT", ""),
            "BOX_FENCE": str(fence or ""),
            "BOX_FILES": str(descriptors.inherited_limit()),
            exec_command.STDOUT.decode(): str(stdout),
            exec_command.EXIT.decode(): str(end),
        }
        held: int = subprocess.DEVNULL
        if fence:
            reader, held = os.pipe()  # the guard reads from it, and nothing ever comes
            stack.callback(os.close, reader)
            stack.callback(os.close, held)
        start = functools.partial(
            _Shim,
            [*_SHELL, "-c", _SCRIPT, "sh", *_EXEC_COMMAND],
            stdin=subprocess.PIPE,
            stdout=held,
            stderr=stderr,
            cwd=cwd,
            env=own,
            start_new_session=True,
            pass_fds=(stdout, end),
        )
        popen = threads.run(start) if threads else start()
    assert popen.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended: its exit is reported
        popen.stdin.write(payload)
        popen.stdin.flush()
    return popen


def read_exit(
    directory: Path,
    returncode: int | None,
    *,
    killed: bool,
    started: bool = False,
    fenced: bool = True,
) -> Exit:
    """How the instance ended: by the shim's own end, and where that is unknown by the file that the
    shim wrote.

    `returncode` is the shim's, None if it is unknown; `killed` says that this Box killed it. An
    instance that runs as the Box's user can write to the file as well, so any content is valid
    input, and none of it counts more than what the kernel reports. `started` says that this Box
    itself has let the command run, `fenced` that the instance has a guard.
    """
    if returncode is not None and returncode >= 0:
        return _exit_of(returncode)
    try:
        text = read_end(directory / _EXIT, _EXIT_SIZE).decode(errors="replace")
    except OSError:
        text = ""
    if text == _NEVER and not started:
        return Exit(ran=False)
    if text == _FENCED and fenced:
        return Exit(signal=signal.SIGKILL, fenced=True)
    if returncode is not None:
        return Exit(signal=-returncode)
    if match := _CODE.fullmatch(text):
        return _exit_of(int(match[1]))
    return Exit(signal=signal.SIGKILL) if killed else Exit(code=None)


def _exit_of(code: int) -> Exit:
    killed_by = code - _SIGNALLED
    return Exit(signal=killed_by) if 0 < killed_by < signal.NSIG else Exit(code=code)


def instance_of(label: str, root: Path) -> str:
    """The id of the instance of `root` with this label; "" if it is not of this root."""
    path = Path(label)
    if path.name == FILES:  # a shim of an earlier version has the directory above
        path = path.parent
    return path.name if path.parent == root else ""


def list_living(root: Path) -> dict[str, LivingInstance]:
    """The living instances under `root`, by id: their shims lead sessions and carry the label."""
    living = {}
    for pid in psutil.pids():
        if group_of(pid) != pid:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            environ = psutil.Process(pid).environ()
            name, identity = instance_of(environ.get(LABEL, ""), root), identify(pid)
            if name and identity is not None:
                living[name] = LivingInstance(identity, _port(environ.get("PORT", "")))
    return living


def command_pid(pid: int) -> int | None:
    """The child of the shim that runs the command; None before its exec, and after its end.

    Before its exec it looks like the shim, or like exec_command.py. In the middle of an exec it has
    no command line.
    """
    with contextlib.suppress(OSError):
        others = (_command_line(pid), _EXEC_LINE, b"")
        return next((child for child in children(pid) if _command_line(child) not in others), None)
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
