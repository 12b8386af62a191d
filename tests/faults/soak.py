"""A random mix of faults on a real Box, a real server and real processes, then the whole history.

    python -m tests.faults.soak --box-kills 100 --server-kills 100 [--seed N]
    python -m tests.faults.soak --seconds 3600

Scale requests go on all the while. What must hold, and what is checked: every acknowledged
request is in its service's record; every instance's chain in the stream is legal, without gap or
double; no event is invented; no kill of the Box changes a process; nothing is left over or there
twice. Exits 0 only if all held, and prints what was counted as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from bridge.box.state.records import ServiceRecord
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.errors import BridgeError, BusError
from bridge.protocol import (
    InstanceInfo,
    InstancesRequest,
    InstancesResponse,
    InstanceState,
    decode,
    encode,
)
from tests.boxes import alive, labelled
from tests.faults.history import History
from tests.support import ask, box_config, connect, eventually

S = InstanceState
_PATIENCE = 30.0  # seconds for anything to be well again; the bound is 15 for the bus


class Soak:
    """One run: faults are carried out one after the other."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._directory = directory
        self._server = EmbeddedServer(directory / "nats")
        self._box: subprocess.Popen[bytes] | None = None
        self._unread: set[str] = set()
        self._killed: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.slowest_recovery = 0.0
        self.slowest_clearing = 0.0

    async def run(self, faults: Iterable[str]) -> None:
        """Carry out `faults`, check after each, and check the whole history at the end."""
        async with self._server as server:
            box_config(self._directory, server.url, on_exit="leave", max_instances=8)
            self._start_box()
            try:
                async with connect(server.url) as gateway:
                    await self._ready(gateway)
                    for number, fault in enumerate(faults, start=1):
                        await self._one(gateway, fault)
                        if number % 10 == 0:
                            await self._check_receipts(gateway)
                            print(f"{number} faults:", dict(self.counts), flush=True)
                    await self._finish(gateway)
            finally:
                await self._end_box()

    async def _one(self, gateway: Connection, fault: str) -> None:
        wanted = self._random.randint(0, 4)
        await self._scale(gateway, wanted)
        before: list[InstanceInfo] = []
        if self._random.random() < 0.6:  # else the fault hits what is under way
            before = await self._serving(gateway, wanted)
        pids = {info.id: self._pids(info.id) for info in before}
        started = time.monotonic()
        await getattr(self, f"_{fault}")(gateway, before)
        self.counts[fault] += 1
        await self._ready(gateway)
        self.slowest_recovery = max(self.slowest_recovery, time.monotonic() - started)
        for name, there in pids.items():
            if name not in self._killed:
                assert self._pids(name) == there, f"{fault} changed the processes of {name}"
                assert all(map(alive, there)), f"{fault} ended {name}"
        await self._no_orphans(gateway)

    # ── the faults ───────────────────────────────────────────────────────────────────────

    async def _box_kill(self, gateway: Connection, before: list[InstanceInfo]) -> None:
        assert self._box is not None
        self._box.kill()
        assert self._box.wait() == -signal.SIGKILL
        await asyncio.sleep(self._random.random() / 2)
        self._start_box()

    async def _server_kill(self, gateway: Connection, before: list[InstanceInfo]) -> None:
        await self._server.kill()
        await asyncio.sleep(self._random.random() / 2)
        await self._server.start()
        await eventually(lambda: gateway.connected, within=_PATIENCE)

    async def _both_kill(self, gateway: Connection, before: list[InstanceInfo]) -> None:
        await self._server.kill()
        await self._box_kill(gateway, before)
        await self._server.start()

    async def _instance_kill(self, gateway: Connection, before: list[InstanceInfo]) -> None:
        if before:
            self._kill_instance(self._random.choice(before).id)

    async def _instance_and_box_kill(self, gateway: Connection, before: list[InstanceInfo]) -> None:
        assert self._box is not None
        os.kill(self._box.pid, signal.SIGSTOP)  # it must not see the instance die
        if before:
            self._kill_instance(self._random.choice(before).id)
        await self._box_kill(gateway, before)

    def _kill_instance(self, name: str) -> None:
        self._killed.add(name)
        for pid in self._pids(name)[1:] or self._pids(name):
            os.kill(pid, signal.SIGKILL)

    # ── asking and looking ───────────────────────────────────────────────────────────────

    async def _scale(self, gateway: Connection, wanted: int) -> None:
        """Ask until it is acknowledged: always with the same id, as a client does."""
        request_id = f"soak-{self.counts['requests']}"
        self.counts["requests"] += 1

        async def acknowledged() -> bool:
            try:
                answer = await ask(gateway, "web", wanted, request_id=request_id, timeout=1.0)
            except BusError:
                return False
            return answer.accepted

        await eventually(acknowledged, within=_PATIENCE, what=f"scaling to {wanted}")
        self._unread.add(request_id)

    async def _instances(self, gateway: Connection) -> InstancesResponse:
        message = await gateway.request("box.instances", encode(InstancesRequest()), timeout=2.0)
        return decode(InstancesResponse, message.data)

    async def _ready(self, gateway: Connection) -> None:
        async def answers() -> bool:
            assert self._box is None or self._box.poll() is None, "the Box has ended"
            try:
                return (await self._instances(gateway)).error is None
            except BridgeError:
                return False

        await eventually(answers, within=_PATIENCE, what="the Box answers")

    async def _serving(self, gateway: Connection, count: int) -> list[InstanceInfo]:
        found: list[InstanceInfo] = []

        async def there() -> bool:
            nonlocal found
            try:
                found = (await self._instances(gateway)).instances
            except BridgeError:
                return False
            return len(found) == count and all(i.state in (S.READY, S.BUSY) for i in found)

        await eventually(there, within=_PATIENCE, what=f"{count} instances serve")
        return found

    def _pids(self, name: str) -> list[int]:
        return sorted(labelled(str(self._instances_dir / name)))

    @property
    def _instances_dir(self) -> Path:
        return self._directory / "data-box-a" / "instances"

    async def _no_orphans(self, gateway: Connection) -> None:
        """Within a moment what runs is what the Box says it has, each once."""

        async def same() -> bool:
            try:
                known = {info.id for info in (await self._instances(gateway)).instances}
            except BridgeError:
                return False
            running = {p.name for p in self._instances_dir.iterdir() if self._pids(p.name)}
            return running <= known

        if self._instances_dir.exists():
            started = time.monotonic()
            await eventually(same, within=10.0, what="nothing runs that nobody knows")
            self.slowest_clearing = max(self.slowest_clearing, time.monotonic() - started)

    async def _check_receipts(self, gateway: Connection) -> None:
        """Every acknowledged request is in the record (the last 64 of a service are kept)."""
        message = await jetstream(gateway).get_last_msg("KV_box_services", "$KV.box_services.web")
        record = decode(ServiceRecord, message.data or b"")
        missing = self._unread - {receipt.request_id for receipt in record.receipts}
        assert not missing, f"acknowledged, and not stored: {missing}"
        self.counts["acknowledged"] += len(self._unread)
        self._unread.clear()

    async def _finish(self, gateway: Connection) -> None:
        await self._check_receipts(gateway)
        await self._scale(gateway, 3)
        serving = await self._serving(gateway, 3)
        history = await History.settled(gateway, serving)
        history.check()
        ends = {name: told[-1][1] for name, told in history.events.items()}
        invented = [
            event
            for name, event in ends.items()
            if event.to_state is S.FAILED and name not in self._killed
        ]
        assert not invented, f"invented: {invented}"
        self.counts["events"] = history.total
        self.counts["instances"] = len(history.states())
        slots = Counter((info.service, info.id) for info in serving)
        assert max(slots.values()) == 1
        await self._scale(gateway, 0)
        await self._serving(gateway, 0)
        await self._no_orphans(gateway)

    # ── the Box ──────────────────────────────────────────────────────────────────────────

    def _start_box(self) -> None:
        file = self._directory / "box-a.toml"
        with (self._directory / "box.log").open("ab") as log:
            self._box = subprocess.Popen(
                [sys.executable, "-m", "bridge.cli", "box", "-c", str(file)], stderr=log
            )

    async def _end_box(self) -> None:
        if self._box is not None:
            self._box.terminate()
            await asyncio.to_thread(self._box.wait)
        for path in self._instances_dir.iterdir() if self._instances_dir.exists() else ():
            for pid in self._pids(path.name):
                os.kill(pid, signal.SIGKILL)


KINDS: Final = {
    "box": 100,
    "server": 100,
    "both": 10,
    "instance": 30,
    "instance-and-box": 10,
}
"""The kinds of kills, and how many of each by default."""


def faults(arguments: argparse.Namespace) -> Iterator[str]:
    """As many of each kind as was asked for, in a random order, or in that mix for a time."""
    chance = random.Random(arguments.seed + 1)
    mix = [
        f"{kind.replace('-', '_')}_kill"
        for kind in KINDS
        for _ in range(getattr(arguments, f"{kind.replace('-', '_')}_kills"))
    ]
    if not arguments.seconds:
        chance.shuffle(mix)
        yield from mix
        return
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        yield chance.choice(mix)


def main() -> None:
    """Run, print the figures, and say by the exit code whether all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    for kind, count in KINDS.items():
        parser.add_argument(f"--{kind}-kills", type=int, default=count, metavar="N")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on for so long instead")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="box-bridge-soak-") as directory:
        soak = Soak(Path(directory), arguments.seed)
        try:
            asyncio.run(soak.run(faults(arguments)))
        except BaseException:
            print((Path(directory) / "box.log").read_text()[-8000:], file=sys.stderr)
            raise
    figures: dict[str, Any] = {
        "seed": arguments.seed,
        "seconds": round(time.monotonic() - started),
        "slowest_recovery_seconds": round(soak.slowest_recovery, 1),
        "slowest_clearing_seconds": round(soak.slowest_clearing, 1),
        **soak.counts,
    }
    print(json.dumps(figures))


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    main()
