"""What every answer of a Box is made from."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from msgspec import Struct

from bridge.box.api.request_headers import requester
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.reply_codes import Refusal, ReplyCode


class ApiContext(Struct, frozen=True, kw_only=True):
    """Shared by the endpoints. `blocker` names the reason why this Box must not answer now, if
    there is one.
    """

    connection: Connection
    fleet: FleetView
    decisions: Decisions
    host: str
    clock: Callable[[], datetime]
    blocker: Callable[[], str | None]

    def requester(self, message: Message) -> str:
        """The user that sent `message`; "" if it is unknown, or if the header proves nothing."""
        return requester(message) if self.connection.settings.request_info else ""

    def check_ready(self) -> None:
        """Raise Refusal if this Box must not answer now."""
        if blocker := self.blocker():
            raise Refusal(ReplyCode.NOT_READY, blocker)
