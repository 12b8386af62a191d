"""Decisions are taken from a current view, one at a time, or refused."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from bridge.box.api.replies import refusal_of
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler.admission import Admission, AdmissionRequest
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostRecord, Offer, ServiceRecord
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.errors import NoResponders, NotPermitted, TooLarge
from bridge.protocol import ScaleConfig, ScaleRequest, now
from bridge.reply_codes import Refusal, ReplyCode
from tests.integration.test_connection import configured
from tests.support import connect


async def test_a_box_without_a_current_view_refuses_a_request_that_it_has_accepted(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        fleet = FleetView(connection, 3)
        seen = [None, "this Box's own lease is not current"]
        decisions = Decisions(fleet, 2.0, now, lambda: seen[0])
        asked = AdmissionRequest(
            request=ScaleRequest(service="web", replicas=1), host="box-a", at=now()
        )
        current = await decisions.decide(asked)
        assert current.code == ReplyCode.UNKNOWN_SERVICE
        seen.reverse()
        stale = "not ready: this Box's own lease is not current; ask again"
        for attempt in (decisions.decide(asked), _answered(decisions, asked)):
            with pytest.raises(Refusal) as refused:
                await attempt
            assert refused.value.code == ReplyCode.NOT_READY
            assert str(refused.value) == stale


async def test_no_step_is_decided_from_an_outdated_view(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        fleet = FleetView(connection, 3)
        decisions = Decisions(fleet, 2.0, now, lambda: "this Box is cut off")
        states: list[FleetState] = []
        assert not await decisions.amend("web", states.append)
        assert states == []


async def test_a_request_that_changes_nothing_is_answered_at_once_unless_a_decision_is_under_way(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        fleet = FleetView(connection, 3)
        decisions = Decisions(fleet, 2.0, now)
        asked = AdmissionRequest(
            request=ScaleRequest(service="web", replicas=1), host="box-a", at=now()
        )
        assert decisions.answer(asked) == await decisions.decide(
            asked
        )  # the same answer in its turn
        async with decisions._my_turn():
            assert decisions.answer(asked) is None
            waiting = asyncio.ensure_future(decisions.decide(asked))
            await asyncio.sleep(0)  # it begins to wait
        assert decisions.answer(asked) is None  # that one came first
        assert await waiting == decisions.answer(asked)


async def test_a_request_that_needs_a_write_is_not_answered_at_once(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        decisions = Decisions(_offering(connection), 2.0, now)
        more = AdmissionRequest(
            request=ScaleRequest(service="web", replicas=1), host="box-a", at=now()
        )
        same = AdmissionRequest(
            request=ScaleRequest(service="web", replicas=0), host="box-a", at=now()
        )
        assert decisions.answer(more) is None
        answer = decisions.answer(same)
        assert answer is not None
        assert answer.response.accepted


async def test_an_outage_of_the_store_is_logged_once(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect(server.url) as connection:
        decisions = Decisions(_offering(connection), 2.0, now)
        asked = AdmissionRequest(
            request=ScaleRequest(service="web", replicas=1), host="box-a", at=now()
        )
        for _ in range(3):
            with pytest.raises(NoResponders, match=r"on \$KV.box_services.web"):
                await decisions.decide(asked)  # there is no bucket
        await topology.ensure(connection)
        assert (await decisions.decide(asked)).response.accepted
        await topology.remove(connection)
        more = AdmissionRequest(
            request=ScaleRequest(service="web", replicas=2), host="box-a", at=now()
        )
        with pytest.raises(NoResponders):
            await decisions.decide(more)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 2, "once for each of two outages"


@pytest.mark.parametrize(
    ("server_limit", "wish", "bound"),
    [(16 * 1024, 17_000, "max_payload"), (4 * 1024 * 1024, 1_100_000, "max_msg_size")],
)
async def test_a_record_that_is_too_large_is_refused_with_the_limit_and_the_fix(
    tmp_path: Path, server_limit: int, wish: int, bound: str
) -> None:
    async with (
        configured(tmp_path, f"max_payload: {server_limit}") as server,
        connect(server.url) as connection,
    ):
        await topology.ensure(connection)
        decisions = Decisions(_offering(connection), 2.0, now)
        large = ScaleConfig(env={"A": "x" * wish})
        request = ScaleRequest(service="web", replicas=3, config=large)
        with pytest.raises(TooLarge) as refused:
            await decisions.decide(AdmissionRequest(request=request, host="box-a", at=now()))
        refusal = refusal_of(refused.value)
        assert refusal.code == ReplyCode.TOO_LARGE
        error = str(refusal)
        assert error.startswith(
            "the fleet's store refused: the record of web, with 3 slots, is too large"
        )
        assert bound in error
        assert error.endswith("; raise that, or ask for fewer instances or a smaller config")


async def test_a_step_that_the_store_always_refuses_is_logged_once_despite_other_successes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        configured(tmp_path, "max_payload: 16384") as server,
        connect(server.url) as connection,
    ):
        await topology.ensure(connection)
        decisions = Decisions(_offering(connection), 2.0, now)
        large = ServiceRecord(version=1, slots=list(range(10_000)))
        for version in range(3):
            assert not await decisions.amend("api", lambda _: large)
            small = ServiceRecord(version=version)
            assert await decisions.amend("web", lambda _: small)  # noqa: B023
    [error] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "the record of api, with 10000 slots, is too large" in error.getMessage()


async def test_a_refusal_names_the_permission_that_the_box_lacks(tmp_path: Path) -> None:
    allowed = '{ publish: { deny: "$KV.box_services.>" } }'
    text = f"authorization {{ users: [{{ user: u, password: p, permissions: {allowed} }}] }}"
    async with (
        configured(tmp_path, text) as server,
        connect(server.url, user="u", password="p") as connection,
    ):
        await topology.ensure(connection)
        decisions = Decisions(_offering(connection), 2.0, now)
        asked = AdmissionRequest(
            request=ScaleRequest(service="web", replicas=1), host="box-a", at=now()
        )
        with pytest.raises(NotPermitted) as refused:
            await decisions.decide(asked)
        refusal = refusal_of(refused.value)
        assert refusal.code == ReplyCode.NOT_PERMITTED
        assert "may not publish on $KV.box_services.web: grant it" in str(refusal)


async def _answered(decisions: Decisions, request: AdmissionRequest) -> Admission | None:
    return decisions.answer(request)


def _offering(connection: Connection) -> FleetView:
    """A fleet of one host that offers the service."""
    fleet = FleetView(connection, 3)
    offer = HostRecord(
        host_id="1", runtime="process", cpus=2, max_instances=5, services={"web": Offer()}
    )
    fleet.index.set_host("box-a", offer)
    return fleet
