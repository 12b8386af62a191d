"""A nats-server with JetStream that lives as long as its owner.

`EmbeddedServer` runs the real server with the configuration of a production fleet
(deploy/nats/nats-server.conf). The server reports that it is ready by its ports file, and logs to a
file (an unread pipe would block it). The kernel kills it when the owner ends, even by SIGKILL. A
store has one server at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.resources
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec
from msgspec import Struct

from bridge.bus.server_binary import find_binary
from bridge.errors import BusError, ServerNotStarted
from bridge.private_files import make_private, make_private_directory

_POLL: Final = 0.01  # seconds between checks of the ports file
_STOP_GRACE: Final = 10.0  # seconds from SIGTERM to SIGKILL
_WATCH: Final = 0.5  # seconds between checks whether the server has ended
_LOCK_PATIENCE: Final = 2.0  # seconds for the server of an owner that was killed to end

# Runs in the child before nats-server. With PR_SET_PDEATHSIG (1) the kernel sends SIGKILL (9) when
# the owner ends; if it has ended already, the parent is another process.
_LEASH: Final = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None).prctl(1,9);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1);"
    "os.execv(sys.argv[2],sys.argv[2:])"
)


_IN_USE: Final = "address already in use"  # the log of a server whose port is taken


class _Ports(Struct):
    nats: list[str] = []


class EmbeddedServer:
    """A nats-server in a directory of its own; `async with` starts and stops it.

    `port` 0 selects a free one. With `keys`, the public nkeys of users, it takes no other users.
    The store in `directory` is durable: a server that is started there again has everything that
    was acknowledged. `kill`, `pause` and `resume` are for fault tests.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        config: Path | None = None,
        keys: Sequence[str] = (),
        patience: float = 10.0,
    ) -> None:
        self.directory = Path(directory)
        self.log_file = self.directory / "nats-server.log"
        self._host = host
        self._port = port
        self._config = config
        self._keys = keys
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """``nats://host:port``, once started."""
        return self._url

    @property
    def pid(self) -> int:
        """The server's process id; 0 while it does not run."""
        return self._process.pid if self._process else 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start, and return when clients can connect. Raises ServerNotStarted, ConfigError."""
        binary = find_binary()
        resource = importlib.resources.files("bridge.bus") / "nats-server.conf"
        async with self._locked() as lock:
            ports = Path(tempfile.mkdtemp(prefix="ports-", dir=self.directory))
            try:
                with importlib.resources.as_file(resource) as default:
                    config = self._config or self._with_users(default)
                    self._spawn(binary, config, ports, lock.fileno())
                    await self._ready(ports)
                    _write_owner(lock, self._url)
            except BaseException:
                await self.stop()
                raise
            finally:
                shutil.rmtree(ports, ignore_errors=True)

    async def stop(self) -> None:
        """Stop by SIGTERM, or by SIGKILL after 10 s; returns when the process has ended."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        if not await _ended(process, _STOP_GRACE):
            process.kill()
            await _ended(process, _STOP_GRACE)

    async def watch(self) -> None:
        """Raise BusError when the server ends without `stop` or `kill`."""
        while True:
            if self._process is not None and (code := self._process.poll()) is not None:
                raise BusError(f"nats-server ended with code {code}: see {self.log_file}")
            await asyncio.sleep(_WATCH)

    async def kill(self) -> None:
        """Kill by SIGKILL; `start` starts it again on the same port with the same store."""
        if self._process is not None:
            self._process.kill()
            await _ended(self._process, _STOP_GRACE)
            self._process = None

    def pause(self) -> None:
        """Freeze the server: connections stay open, and it answers nothing once this returns."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            # One of its threads must run to stop the others, which takes a while on a busy machine.
            with contextlib.suppress(ChildProcessError):  # it has ended
                os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Continue after `pause`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[BinaryIO]:
        """Lock the directory: two servers in one store would destroy it.

        The server inherits the lock, which is held until the last process that has it open ends.
        """
        try:
            make_private_directory(self.directory)
            make_private(self.directory / "lock")
            lock = (self.directory / "lock").open("a+b")
        except OSError as exc:
            raise ServerNotStarted(f"{self.directory} cannot be used: {exc.strerror}") from exc
        with lock:
            deadline = asyncio.get_running_loop().time() + _LOCK_PATIENCE
            while not _flocked(lock):
                if asyncio.get_running_loop().time() > deadline:
                    raise ServerNotStarted(
                        f"another server runs in {self.directory}: "
                        "stop it, or choose another data_dir",
                        owner=_read_owner(lock),
                    )
                await asyncio.sleep(_POLL)
            yield lock

    def _with_users(self, default: Path) -> Path:
        """The configuration `default`, for the users of `keys` alone if there are any."""
        if not self._keys:
            return default
        users = ", ".join(f"{{ nkey: {key} }}" for key in self._keys)
        config = self.directory / "nats-server.conf"
        make_private(config, empty=True)
        config.write_text(f"{default.read_text()}\nauthorization {{ users: [{users}] }}\n")
        return config

    def _spawn(self, binary: Path, config: Path, ports: Path, lock: int) -> None:
        command = [str(binary), "-c", str(config), "-a", self._host, "-p", str(self._port or -1)]
        command += ["-js", "-sd", str(self.directory), "--ports_file_dir", str(ports)]
        command += ["-l", str(self.log_file)]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            umask=0o077,
            start_new_session=True,  # Ctrl-C is for the owner, which stops the server last
        )

    async def _ready(self, ports: Path) -> None:
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + self._patience
        while True:
            if url := _listening(ports):
                self._url = url
                self._port = int(url.rpartition(":")[2])
                return
            if self._process.poll() is not None:
                tail = self._tail()
                raise ServerNotStarted(
                    f"it exited with code {self._process.returncode}",
                    tail,
                    port_taken=self._port if _IN_USE in tail else 0,
                )
            if asyncio.get_running_loop().time() > deadline:
                raise ServerNotStarted(f"not ready within {self._patience:g} s", self._tail())
            await asyncio.sleep(_POLL)

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-5:])
        return ""


def _write_owner(lock: BinaryIO, url: str) -> None:
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}, {url}".encode())
    lock.flush()


def _read_owner(lock: BinaryIO) -> str:
    """The process that holds `lock`, and its server's URL; empty if it has not written them yet."""
    lock.seek(0)
    return lock.read(500).decode(errors="replace")


def _flocked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _listening(ports: Path) -> str:
    """The client URL in the server's ports file; empty until it is written."""
    for file in ports.glob("*.ports"):
        with contextlib.suppress(msgspec.MsgspecError):  # being written
            return next(iter(msgspec.json.decode(file.read_bytes(), type=_Ports).nats), "")
    return ""


async def _ended(process: subprocess.Popen[bytes], timeout: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while process.poll() is None:
        if loop.time() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True
