"""Runs an instance's command, with an environment that no shell has touched.

The shim (shim.py) starts this program, and the Box sends it what to run through stdin: see
`payload`. A shell would drop variables whose names it cannot spell, and take others for its own. So
the environment goes around the shell, byte for byte, and never appears on a command line.

The program starts while the Box records the process, waits for the Box's go, and becomes the
command. A command of another user gets that user last of all. The program imports only modules of
the interpreter itself: its start delays each instance.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix
from errno import E2BIG, EACCES, ENOENT, ENOEXEC, ENOTDIR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIZE = 8
"""Bytes of the number in front of a payload: its size, big-endian."""
GO = b"go\n"
"""Comes after the payload, once the Box has recorded the process."""

STDOUT = b"BOX_STDOUT"
"""The shim's variable that has the descriptor of the log; stderr is open already."""
EXIT = b"BOX_EXIT"
"""The shim's variable that has the descriptor of the exit file."""
SHELLS_EXIT = 4
"""The descriptor by which the shim itself writes to the exit file."""
NEVER = b"never\n"
"""The content of the exit file if the command has never run."""

_SHELL = b"/bin/sh"
_DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"
_LAST_SIGNAL = 31  # SIGSYS; those above are the C library's own, and real-time signals
_MISSING, _UNUSABLE = 127, 126  # exit codes of shells: no such program; it cannot be run


def payload(
    memory: int,
    command: Sequence[bytes],
    env: Mapping[bytes, bytes],
    user: Sequence[int] = (),
) -> bytes:
    """What the Box sends. `memory` is the limit in bytes; 0 means no limit. `user` is a user id, a
    group id and those of further groups; without it the command runs as the Box's user.

    Raises ValueError for a NUL byte, and for a name that is empty or has "=" in it.
    """
    for name in env:
        if not name or b"=" in name:
            raise ValueError(f"{name!r} cannot be the name of a variable")
    ids = b" ".join(b"%d" % number for number in user)
    fields = [b"%d" % memory, ids, b"%d" % len(command), *command]
    fields += [name + b"=" + value for name, value in env.items()]
    data = b"\0".join(fields)
    if data.count(b"\0") != len(fields) - 1:
        raise ValueError("a command and its environment cannot contain a NUL character")
    return len(data).to_bytes(SIZE, "big") + data


def main() -> None:
    """Become the command, or exit with a shell's exit code for a program that cannot be run."""
    data = _read(int.from_bytes(_read(SIZE), "big"))
    memory, user, count, *rest = data.split(b"\0")
    command, env = rest[: int(count)], dict(item.split(b"=", 1) for item in rest[int(count) :])
    if not posix.read(0, 1):  # the Box has ended, and no Box knows this process
        _never()
    posix.sched_setaffinity(0, posix.sched_getaffinity(posix.getppid()))
    posix.dup2(int(posix.environ[STDOUT]), 1)
    null = posix.open(b"/dev/null", posix.O_RDONLY)
    posix.dup2(null, 0)
    for descriptor in (int(posix.environ[STDOUT]), int(posix.environ[EXIT]), SHELLS_EXIT, null):
        posix.set_inheritable(descriptor, False)
    for number in range(1, _LAST_SIGNAL + 1):  # Python ignores two, `nohup` and shells others
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
    if limit := int(memory):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if user:
        _become(*map(int, user.split()))
    error = _run(command, env)
    size = sum(map(len, command)) + sum(len(name) + len(value) + 2 for name, value in env.items())
    why = posix.strerror(error)
    if error == E2BIG:
        why = f"its command and environment, {size} bytes, or one of their values, are too large"
    name = command[0].decode(errors="replace")
    posix.write(2, f"cannot run {name}: {why}\n".encode())
    raise SystemExit(_MISSING if error == ENOENT else _UNUSABLE)


def _become(uid: int, gid: int, *groups: int) -> None:
    """Become another user, for good. The change from root takes every capability away."""
    posix.setgroups(groups)
    posix.setresgid(gid, gid, gid)
    posix.setresuid(0, 0, 0)
    posix.setresuid(uid, uid, uid)


def _run(command: list[bytes], env: dict[bytes, bytes]) -> int:
    """Try the program, in the directories of the environment's PATH; returns the errno."""
    program, error = command[0], ENOENT
    path = [b""] if b"/" in program else env.get(b"PATH", _DEFAULT_PATH).split(b":")
    for directory in path:
        file = directory + b"/" + program if directory else program
        try:
            posix.execve(file, command, env)
        except OSError as exc:
            if exc.errno == ENOEXEC and program != _SHELL:  # a script without "#!"
                return _run([_SHELL, file, *command[1:]], env)
            if exc.errno not in (ENOENT, ENOTDIR, EACCES):
                return exc.errno or ENOENT
            if exc.errno == EACCES or error == ENOENT:
                error = exc.errno
    return error


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = posix.read(0, size - len(data))
        if not part:  # the Box has ended before it sent everything
            _never()
        data += part
    return data


def _never() -> None:
    """The command will never run: note that, and end the shim."""
    try:
        posix.write(int(posix.environ[EXIT]), NEVER)
    finally:
        posix.killpg(0, _signal.SIGKILL)


if __name__ == "__main__":
    main()
