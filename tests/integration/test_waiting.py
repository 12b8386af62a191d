"""Waiting for what was ordered: it stands over outages, and so does the wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from bridge import Operator, RequestTimeout, ScaleClient
from bridge.admin_protocol import AdminResponse, Host, HostsResponse, Move
from bridge.bus.core.connection import Connection
from bridge.bus.core.listener import Listener
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.publish import store
from bridge.errors import BusError, CutOff
from bridge.gateway import requests
from bridge.gateway.errors import NoBoxError, OrderRefused, ScaleError
from bridge.protocol import (
    InstanceInfo,
    InstanceRegistration,
    InstancesResponse,
    InstanceState,
    ScaleResponse,
    encode,
    now,
)
from tests.support import connect, eventually


class FakeFleet:
    """Boxes in name only: box-a has an instance that is to go, until it is `empty`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.empty = False
        self.refusal = ""  # the code of all answers
        self._listeners: list[Listener] = []

    async def come(self) -> None:
        for subject, answer in (
            ("box.admin", self._obey),
            ("box.hosts", self._hosts),
            ("box.instances", self._instances),
            ("box.scale", self._scale),
        ):
            self._listeners.append(await self.connection.listen(subject, answer))
        await self.connection.flush()

    async def leave(self) -> None:
        while self._listeners:
            await self._listeners.pop().close()
        await self.connection.flush()

    async def register(self, instance_id: str) -> None:
        """Register an instance with gateways, in new streams."""
        await self.connection.wait_connected()
        await topology.ensure(self.connection)
        registration = InstanceRegistration(
            instance_id=instance_id, service="web", endpoint="127.0.0.1:1", started_at=now()
        )
        await store(self.connection, f"box.register.web.{instance_id}", encode(registration))

    def _obey(self, message: Message) -> None:
        move = Move(service="web", slot=0, instance_id="web-1", source="box-a", target="box-b")
        answer = AdminResponse(done=True, affected=1, moves=[move])
        self.connection.publish(message.reply, encode(answer))

    def _hosts(self, message: Message) -> None:
        used = 0 if self.empty else 1
        host = Host(name="box-a", live=True, used=used, services={"web": used})
        answer = HostsResponse(total=1, hosts=[host], error=self.refusal or None)
        self._publish(message, encode(answer))

    def _publish(self, message: Message, data: bytes) -> None:
        headers = {"Box-Code": self.refusal} if self.refusal else None
        self.connection.publish(message.reply, data, headers=headers)

    def _scale(self, message: Message) -> None:
        answer = ScaleResponse(
            request_id="r", accepted=True, current_replicas=0, target_replicas=1, instances=[]
        )
        self.connection.publish(message.reply, encode(answer))

    def _instances(self, message: Message) -> None:
        name = "web-2" if self.empty else "web-1"
        state, at = InstanceState.READY if self.empty else InstanceState.BOOTING, now()
        there = InstanceInfo(id=name, state=state, service="web", created_at=at)
        answer = InstancesResponse(total=1, instances=[there], hosts={}, error=self.refusal or None)
        self._publish(message, encode(answer))


@pytest.mark.parametrize(
    "verb",
    [
        "scale",
        pytest.param("drain", marks=pytest.mark.slow),
        pytest.param("rebalance", marks=pytest.mark.slow),
    ],
)
async def test_a_wait_outlasts_boxes_that_are_gone_not_ready_or_cut_off(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    passed: list[BusError | ScaleError] = []

    def is_transient(exc: BusError | ScaleError) -> bool:
        passed.append(exc)
        return real(exc)

    real = requests.is_transient
    monkeypatch.setattr(requests, "is_transient", is_transient)
    for waiter in ("operator", "client"):
        monkeypatch.setattr(f"bridge.gateway.{waiter}._QUERY_TIMEOUT", 0.5)
    looks: list[int] = []
    async with connect(server.url) as boxes, Operator.connect(server.url) as operator:
        fleet = FakeFleet(boxes)
        await fleet.come()
        waiting: asyncio.Future[object]
        if verb == "drain":
            drain = operator.drain("box-a", progress=lambda done, of, host: looks.append(done))
            waiting = asyncio.ensure_future(drain)
        elif verb == "scale":
            scale = ScaleClient(operator.connection).scale(
                "web",
                1,
                wait=True,
                progress=lambda seen: looks.append(seen.instances[0].id == "web-2"),
            )
            waiting = asyncio.ensure_future(scale)
        else:
            moves = operator.rebalance(wait=True, progress=lambda done, of: looks.append(done))
            waiting = asyncio.ensure_future(moves)
        await eventually(lambda: bool(looks))
        await fleet.leave()
        await eventually(lambda: any(isinstance(exc, NoBoxError) for exc in passed))
        fleet.refusal = "not_ready"
        await fleet.come()
        await eventually(lambda: any(str(exc) == fleet.refusal for exc in passed))
        await server.kill()
        await eventually(lambda: any(isinstance(exc, CutOff) for exc in passed))
        fleet.refusal, fleet.empty = "", True
        await server.start()
        await fleet.register("web-2")
        async with asyncio.timeout(30):
            await waiting
        assert (looks[0], looks[-1]) == (0, 1)


async def test_a_final_refusal_ends_a_wait(server: EmbeddedServer) -> None:
    async with connect(server.url) as boxes, Operator.connect(server.url) as operator:
        fleet = FakeFleet(boxes)
        await fleet.come()
        fleet.refusal = "unknown_host"
        with pytest.raises(OrderRefused, match="unknown_host"):
            await operator.drain("box-a")


@pytest.mark.slow
async def test_only_requests_that_change_something_report_an_unknown_outcome(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(server.url) as boxes, Operator.connect(server.url) as operator:
        for subject in ("box.hosts", "box.history", "box.plan", "box.instances", "box.admin"):
            await boxes.listen(subject, lambda message: None)
        await boxes.flush()
        looks: list[Awaitable[object]] = [
            operator.hosts(timeout=0.5),
            operator.history("web", timeout=0.5),
            operator.plan("web", 1, timeout=0.5),
            ScaleClient(operator.connection).observe(timeout=0.5),
        ]
        for look in looks:
            with pytest.raises(RequestTimeout, match=r"within 0\.5 s; ask again$"):
                await look
        monkeypatch.setattr("bridge.gateway.operator._TIMEOUT", 0.5)
        with pytest.raises(RequestTimeout, match="outcome is unknown"):
            await operator.cordon("box-a")
        with pytest.raises(RequestTimeout, match=r"; ask again$"):
            await operator.rebalance(dry_run=True)
