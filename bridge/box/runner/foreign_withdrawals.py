"""Replacing instances of this host that another host has withdrawn from gateways.

A host that counts as lost loses its slots: the Box that takes a slot over, or deletes its claim,
withdraws the instance. If the lost host comes back and still owns the slot, or owns it again, its
instance lives but no gateway will ever route to it: a deregistered id is never registered again.
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


class ForeignWithdrawals:
    """Makes each instance leave that was deregistered, as far back as the stream goes.

    `find` gives an instance of this host by its id. Messages that break the contract are counted.
    """

    def __init__(self, connection: Connection, find: Callable[[str], Instance | None]) -> None:
        subjects = connection.subjects
        _, subject = subjects.all_registrations
        self._find = find
        self._metrics = connection.metrics
        self._follower = Follower(
            connection, subjects.registry_stream, self._take, subjects=[subject]
        )

    async def run(self) -> None:
        """Follow the stream until cancelled."""
        await self._follower.run()

    def _take(self, message: Message, seq: int, time_ns: int) -> None:
        _, _, service, instance_id = message.subject.split(".")
        instance = self._find(instance_id)
        if instance is None:
            return  # another host's, as most are: every Box receives them all
        if instance.life.info.service != service:
            self._metrics.refuse(_WHERE, "another service's instance")
        elif isinstance(result := read_withdrawal(message.data, service, instance_id), str):
            self._metrics.refuse(_WHERE, result)
        else:
            instance.leave("withdrawn by another host, which counted this one as lost")
