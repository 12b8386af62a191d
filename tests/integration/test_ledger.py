"""Decisions that wait their turn are taken from what is seen then, or not at all."""

from __future__ import annotations

from bridge.box.authority import Asked
from bridge.box.fleet import Fleet
from bridge.box.ledger import Ledger
from bridge.box.model import FleetState
from bridge.bus.server import EmbeddedServer
from bridge.protocol import ScaleRequest, now
from tests.support import connect


async def test_a_box_that_has_lost_sight_of_the_fleet_refuses_what_it_had_taken(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        fleet = Fleet(connection, 3, lambda service: None, lambda name, record: None)
        seen = ["", "this Box's own lease is not current"]
        ledger = Ledger(fleet, 2.0, now, lambda: seen[0])
        asked = Asked(request=ScaleRequest(service="web", replicas=1), host="box-a", at=now())
        current = await ledger.decide(asked)
        seen.reverse()
        stale = await ledger.decide(asked)
        assert current is not None
        assert stale is not None
        assert (current.error or "").startswith("unknown service")
        assert stale.error == "not ready: this Box's own lease is not current; ask again"


async def test_a_step_that_waited_its_turn_is_not_taken_from_what_is_seen_no_more(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        fleet = Fleet(connection, 3, lambda services: None, lambda name, record: None)
        ledger = Ledger(fleet, 2.0, now, lambda: "this Box is cut off")
        looked: list[FleetState] = []
        assert not await ledger.amend("web", looked.append)
        assert looked == []
