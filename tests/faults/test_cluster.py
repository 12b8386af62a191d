"""A fleet on three nats-servers rides through the loss of any one of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec import Struct

from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.publish import store
from bridge.errors import BusError
from bridge.protocol import ScaleResponse
from bridge.tasks import task_scope
from tests.boxes import serving
from tests.faults.cluster import Cluster
from tests.faults.decisions import Decisions, decided
from tests.faults.history import History
from tests.faults.hosts import fleet, running
from tests.support import box_config, connect, eventually, service_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HOSTS = ("box-a", "box-b", "box-c")
SERVICES = ("s0", "s1", "s2", "s3")
STEADY = 3  # instances of `web`, whose target does not change
CAPACITY = 3 * 4  # three Boxes of four: less than is asked for at times

_RESUME = 30.0  # seconds until a cluster that lost a leader takes writes in its stream again
_DECIDE = 20.0  # seconds more until each Box decides: it looks again every second
_PAUSE = 0.5  # seconds between the requests for a service: the bucket keeps 64 revisions of each

PROBES = {
    "KV_box_services": "$KV.box_services.Probe",
    "KV_box_slots": "$KV.box_slots.Probe",
    "KV_box_hosts": "$KV.box_hosts.Probe",
    "KV_box_admin": "$KV.box_admin.Probe",
    "BOX_EVENTS": "box.events.probe",
}
"""What is written to find out whether a stream takes writes; no Box heeds it."""


class Ack(Struct, frozen=True, kw_only=True):
    """An answer, and when it was first asked for and given, in the loop's time."""

    service: str
    answer: ScaleResponse
    asked: float
    given: float


class Load:
    """Requests for other targets all the time, of several services, each asked until answered. A
    gateway at each server asks: a server may prefer the Boxes that are its own clients.
    """

    def __init__(self, gateways: list[Connection]) -> None:
        self._gateways = gateways
        self._loop = asyncio.get_running_loop()
        self.acks: dict[str, Ack] = {}
        self.over = asyncio.Event()

    async def run(self, service: str) -> None:
        """Ask for 1, 2, 3, 1, … instances of `service` until it is over."""
        gateway = self._gateways[SERVICES.index(service) % len(self._gateways)]
        for number in itertools.count():
            name, asked = f"{service}-{number}", self._loop.time()
            answer = await decided(gateway, service, 1 + number % 3, name, timeout=1.0, outage=True)
            self.acks[name] = Ack(
                service=service, answer=answer, asked=asked, given=self._loop.time()
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE):
                    await self.over.wait()
            if self.over.is_set():
                return

    async def goes_on(self, within: float) -> None:
        """Return when each Box has decided a request that is first made from now on."""
        since = self._loop.time()

        async def all_decide() -> bool:
            fresh = {name for name, ack in self.acks.items() if ack.asked >= since}
            written = (await Decisions.read(self._gateways[0])).written
            return {written[name].host for name in fresh & written.keys()} == set(HOSTS)

        await eventually(all_decide, within=within, what="each Box decides")

    @property
    def answers(self) -> dict[str, ScaleResponse]:
        return {name: ack.answer for name, ack in self.acks.items()}

    @property
    def longest_gap(self) -> float:
        """The seconds between two answers when there was none for longest."""
        given = sorted(ack.given for ack in self.acks.values())
        return max(later - earlier for earlier, later in itertools.pairwise(given))


@pytest.mark.parametrize("stream", ["KV_box_services", "BOX_EVENTS"])
async def test_a_killed_leader_loses_no_acknowledged_write(tmp_path: Path, stream: str) -> None:
    tables = [service_table(name) for name in ("web", *SERVICES)]
    async with (
        Cluster.running(tmp_path) as cluster,
        fleet(cluster.url, tmp_path, HOSTS, *tables, replicas=3, max_instances=4) as (
            gateway,
            boxes,
        ),
        _gateways(cluster) as gateways,
    ):
        loop, load = asyncio.get_running_loop(), Load(gateways)
        steady = await decided(gateway, "web", STEADY, "web")
        there = await serving(gateway, "web", STEADY)
        async with task_scope() as tasks:
            work = [tasks.create_task(load.run(service)) for service in SERVICES]
            await load.goes_on(within=20)
            victim = await cluster.leader(gateway, stream)
            await victim.kill()
            killed = loop.time()
            await asyncio.gather(*(_resumed(gateway, name) for name in PROBES))
            resumed = loop.time()
            await load.goes_on(within=_DECIDE)
            load.over.set()
            await asyncio.wait(work)
        assert load.longest_gap <= resumed - killed + _DECIDE, "the Boxes decide again"
        await victim.start()
        decisions = await Decisions.read(gateway)
        decisions.check({**load.answers, "web": steady}, CAPACITY)
        last = [
            info
            for service, target in decisions.targets.items()
            for info in await serving(gateway, service, target)
        ]
        ids = {info.id for info in last}
        assert {info.id for info in there} <= ids, "what nobody asked to end goes on"
        await eventually(lambda: set(running(boxes)) == ids, within=20, what="nothing else runs")
        (await History.settled(gateway, last)).check()


async def test_a_cluster_without_a_quorum_ends_no_box_and_no_instance(tmp_path: Path) -> None:
    async with Cluster.running(tmp_path) as cluster:
        config = box_config(tmp_path, cluster.url, replicas=3, on_exit="drain")
        async with Box.running(config) as box, connect(cluster.url) as gateway:
            await decided(gateway, "web", STEADY, "web", outage=True)
            before = {info.id for info in await serving(gateway, "web", STEADY)}
            away = [cluster.servers[name] for name in ("two", "three")]
            for server in away:
                await server.kill()
            await eventually(box.blocker, what="the Box is not ready")
            await asyncio.sleep(4 * config.timing.lease)  # longer than any deadline of the Box
            assert box.blocker()
            for server in away:
                await server.start()
            await eventually(lambda: not box.blocker(), what="the Box is ready again")
            await decided(gateway, "web", STEADY + 1, "more", outage=True)
            assert before < {info.id for info in await serving(gateway, "web", STEADY + 1)}


@contextlib.asynccontextmanager
async def _gateways(cluster: Cluster) -> AsyncIterator[list[Connection]]:
    """A connection to each server."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(connect(server.url))
            for server in cluster.servers.values()
        ]


async def _resumed(gateway: Connection, stream: str) -> float:
    """When the stream takes a write, in the loop's time."""

    async def takes_writes() -> bool:
        try:
            await store(gateway, PROBES[stream], b"{}", timeout=1.0)
        except BusError:
            return False
        return True

    await eventually(takes_writes, within=_RESUME, what=f"{stream} takes writes again")
    return asyncio.get_running_loop().time()
