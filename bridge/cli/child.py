"""The program that `register` runs: its start, its signals and its end.

Gateways must withdraw the instance before the program stops serving. So the program gets a process
group of its own, and a Ctrl-C at the terminal reaches `register` first. Under a Box the program
stays in the Box's group, because the Box withdraws an instance before it signals it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Final

from bridge.box.runtimes.base import Exit
from bridge.config import child_environment
from bridge.console import err
from bridge.errors import ConfigError
from bridge.protocol import InstanceRegistration
from bridge.tasks import task_scope
from bridge.validation import split_endpoint

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_FORWARDED: Final = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)


class Child:
    """The program as a child process. It is `over` when it ends, or a signal asks it to end."""

    def __init__(self, port: int, *, own_group: bool) -> None:
        self.port = port
        self._own_group = own_group
        self._process: asyncio.subprocess.Process | None = None
        self._early: list[signal.Signals] = []  # signals that came before the start
        self._ending: signal.Signals | None = None
        self._over = asyncio.Event()
        self._ended = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, command: Sequence[str], identity: InstanceRegistration, *, own_group: bool
    ) -> AsyncIterator[Child]:
        """Start the program as the instance `identity`; kill it at the end of the block."""
        _, port = split_endpoint(identity.endpoint)
        environment = child_environment(
            {
                "BOX_INSTANCE_ID": identity.instance_id,
                "BOX_SERVICE": identity.service,
                "BOX_REGISTRATION": "box",  # the program need not register itself
                "PORT": str(port),
            }
        )
        child = cls(port, own_group=own_group)
        loop = asyncio.get_running_loop()
        try:
            # Before the start, because a signal may come as soon as the program is seen.
            for number in _ENDING:
                loop.add_signal_handler(number, child._request_end, number)
            for number in _FORWARDED:
                loop.add_signal_handler(number, child._send, number)
            await child._start(command, environment)
            async with task_scope() as tasks:
                tasks.create_task(child._wait(), name="child")
                yield child
        finally:
            for number in (*_ENDING, *_FORWARDED):
                loop.remove_signal_handler(number)
            if child._process is not None:
                child._send(signal.SIGKILL)
                await child._process.wait()

    async def _start(self, command: Sequence[str], environment: dict[str, str]) -> None:
        group = 0 if self._own_group else None
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=environment, process_group=group
            )
        except OSError as exc:
            raise ConfigError("register", f"cannot start {command[0]}: {exc}") from exc
        for number in self._early:
            self._send(number)

    @property
    def over(self) -> bool:
        """Whether the program has ended, or a signal has asked it to end."""
        return self._over.is_set()

    @property
    def reason(self) -> str:
        """The reason why it is over: its exit status, or the signal's name."""
        code = self._exit_code
        if code is None:
            return self._ending.name if self._ending else ""
        return str(Exit(code=max(code, 0), signal=max(-code, 0)))

    async def over_within(self, seconds: float | None) -> bool:
        """Wait until it is over; False after `seconds`."""
        return await _wait_set(self._over, seconds)

    async def ended_within(self, seconds: float) -> bool:
        """Wait until the program has ended; False after `seconds`."""
        return await _wait_set(self._ended, seconds)

    async def end(self, grace: float) -> int:
        """Pass on the signal that asked for the end, or SIGTERM; kill the program after `grace`
        seconds. Returns its exit code, 128 + n after signal n.
        """
        self._send(self._ending or signal.SIGTERM)
        if not await self.ended_within(grace):
            err.print(f"box-bridge: killed: it did not end within {grace:g} s")
            self._send(signal.SIGKILL)
        await self._ended.wait()
        code = self._exit_code
        assert code is not None
        return code if code >= 0 else 128 - code

    @property
    def _exit_code(self) -> int | None:
        return None if self._process is None else self._process.returncode

    def _request_end(self, number: signal.Signals) -> None:
        if self._ending is not None:
            self._send(signal.SIGKILL)
        self._ending = self._ending or number
        self._over.set()

    def _send(self, number: signal.Signals) -> None:
        if self._process is None:
            self._early.append(number)
            return
        if self._process.returncode is not None:
            return  # the kernel may have given its pid to another process
        with contextlib.suppress(ProcessLookupError):
            if self._own_group:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    async def _wait(self) -> None:
        assert self._process is not None
        await self._process.wait()
        self._ended.set()
        self._over.set()


async def _wait_set(event: asyncio.Event, seconds: float | None) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
