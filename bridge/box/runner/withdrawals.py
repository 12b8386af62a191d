"""Hearing that instances of this host were withdrawn from gateways by somebody else.

It happens when a host was held to be lost: who took its slot over, or deleted its claim, withdrew
the instance. Should the host come back and own the slot still, or again, that instance lives and no
gateway will ever route to it, for an id that was deregistered stays gone. It must be replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridge.box.runner.instance import Instance
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream.follower import Follower
from bridge.validation import read_withdrawal

_WHERE: Final = "deregister"


class Withdrawals:
    """Has each of this host's instances leave that is deregistered, or was within the stream's
    memory: `living` finds one by its id. What is not as the contract says is counted. `run` until
    cancelled.
    """

    def __init__(self, connection: Connection, living: Callable[[str], Instance | None]) -> None:
        subjects = connection.subjects
        _, subject = subjects.all_registrations
        self._living = living
        self._metrics = connection.metrics
        self._follower = Follower(
            connection, subjects.registry_stream, self._take, subjects=[subject]
        )

    async def run(self) -> None:
        await self._follower.run()

    def _take(self, message: Message, seq: int, time_ns: int) -> None:
        _, _, service, instance_id = message.subject.split(".")
        instance = self._living(instance_id)
        if instance is None:
            return  # another host's, as most are: every Box hears of all
        if instance.life.info.service != service:
            self._metrics.refuse(_WHERE, "another service's instance")
        elif isinstance(gone := read_withdrawal(message.data, service, instance_id), str):
            self._metrics.refuse(_WHERE, gone)
        else:
            instance.leave("withdrawn by another host, which held this one to be lost")
