"""The whole history in `box_services`, and whether it is one that keeps what was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from bridge.box.state.records import Decision, ServiceRecord
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.errors import BusError, NoReply
from bridge.protocol import ScaleResponse, decode
from bridge.reply_codes import TRANSIENT, ReplyCode
from bridge.subjects import REPLY_CODE, is_name, last_token
from tests.support import ask_for_reply

_AGAIN = 0.05  # seconds until a request is repeated


async def decided(
    gateway: Connection,
    service: str,
    replicas: int,
    name: str,
    *,
    timeout: float = 5.0,
    outage: bool = False,
) -> ScaleResponse:
    """The answer to the request `name`, asked for until there is one that is final. What an
    `outage` of the store brings about is not.
    """
    passes = {*TRANSIENT, ReplyCode.STORE_REFUSED} if outage else TRANSIENT
    while True:
        try:
            reply = await ask_for_reply(
                gateway, service, replicas, request_id=name, timeout=timeout
            )
        except BusError as exc:
            if not (outage or isinstance(exc, NoReply)):
                raise
        else:
            if reply.headers.get(REPLY_CODE) not in passes:
                return decode(ScaleResponse, reply.data)
        await asyncio.sleep(_AGAIN)


class Decisions:
    """Every revision of every service's record, in the order of the bucket."""

    def __init__(self, revisions: list[tuple[str, ServiceRecord]]) -> None:
        self.revisions = revisions

    @classmethod
    async def read(cls, gateway: Connection) -> Decisions:
        """All that the bucket holds now."""
        revisions: list[tuple[str, ServiceRecord]] = []

        def take(message: Message) -> None:
            if is_name(service := last_token(message.subject)):  # else a test's own vandalism
                revisions.append((service, decode(ServiceRecord, message.data)))

        await replay.read(gateway, "KV_box_services", ">", take)
        return cls(revisions)

    @property
    def targets(self) -> dict[str, int]:
        """What each service is to have now."""
        return {service: record.target for service, record in self.revisions}

    @property
    def written(self) -> dict[str, Decision]:
        """What was decided on each request, by its id."""
        decisions = (record.decision for _, record in self.revisions)
        return {one.request_id: one for one in decisions if one and one.request_id}

    def check(self, answers: Mapping[str, ScaleResponse], capacity: int) -> list[int]:
        """The sum of all targets at each revision; fails unless no revision was written over, none
        promises more than there is, and each of the `answers`, by request_id, is what was written,
        once.
        """
        now: dict[str, ServiceRecord] = {}
        written: dict[str, ServiceRecord] = {}
        promised: list[int] = []
        for service, record in self.revisions:
            before = now.get(service)
            assert record.version == (before.version if before else 0) + 1, "written over"
            now[service] = record
            promised.append(sum(item.target for item in now.values()))
            assert promised[-1] <= capacity
            if record.decision and record.decision.request_id:
                assert record.decision.request_id not in written, "it had two effects"
                written[record.decision.request_id] = record
        for name, answer in answers.items():
            assert answer.accepted or (answer.error or "").startswith("Capped"), answer.error
            assert written[name].target == answer.target_replicas, "told what was written"
        return promised
