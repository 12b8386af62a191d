"""The gateway's side: asking until it is answered, waiting, and every way in which that ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from msgspec import Struct

from bridge import (
    ConnectFailed,
    CutOff,
    InstanceState,
    NoBoxError,
    RequestTimeout,
    ScaleCapped,
    ScaleClient,
    ScaleConfig,
    ScaleRefused,
    WaitTimeout,
)
from bridge.box.daemon import Box
from bridge.bus.core.connection import Connection
from bridge.bus.core.listener import Listener
from bridge.bus.core.message import Message
from bridge.bus.core.pending_request import PendingRequest
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import NameRefused
from bridge.gateway import requests
from bridge.gateway.errors import ScaleError
from bridge.protocol import (
    InstancesResponse,
    ScaleRequest,
    ScaleResponse,
    decode,
    encode,
    parse_time,
)
from tests.boxes import boxed, fetch, serving
from tests.faults.history import check_history, read_history
from tests.support import box_config, connect, eventually, service_table


class Answered(Struct, frozen=True, kw_only=True):
    """What a fake Box answers; `code` is empty where it sends none."""

    response: ScaleResponse
    code: str = ""


class FakeBox:
    """A Box in name only: takes requests in the queue group and answers as it is told, or not
    at all, as a frozen one would.
    """

    def __init__(self, connection: Connection, *answers: Answered | None) -> None:
        self.requests: list[Message] = []
        self._connection = connection
        self._listener: Listener
        self._answers = list(answers)

    @classmethod
    async def listening(cls, connection: Connection, *answers: Answered | None) -> FakeBox:
        box = cls(connection, *answers)
        box._listener = await connection.listen("box.scale", box._take, queue="box")
        await connection.flush()
        return box

    def _take(self, message: Message) -> None:
        self.requests.append(message)
        answer = self._answers.pop(0) if self._answers else None
        if answer is not None:
            self.answer(message, answer)

    def answer(self, message: Message, answer: Answered) -> None:
        headers = {"Box-Code": answer.code} if answer.code else None
        self._connection.publish(message.reply, encode(answer.response), headers=headers)

    async def leave(self) -> None:
        """Take nothing more."""
        await self._listener.close()
        await self._connection.flush()


def answered(code: str = "", *, error: str = "in words", target: int = 3) -> Answered:
    """An answer: a refusal or a cap if it has a `code`."""
    response = ScaleResponse(
        request_id="r",
        accepted=not code,
        current_replicas=0,
        target_replicas=target,
        instances=[],
        error=error if code else None,
    )
    return Answered(response=response, code=code)


# ── against a real Box ───────────────────────────────────────────────────────────────────


async def test_scale_observe_and_wait(server: EmbeddedServer, tmp_path: Path) -> None:
    async with boxed(server, tmp_path) as _, ScaleClient.connect(server.url) as client:
        answer = await client.scale("web", 2)
        assert (answer.accepted, answer.target_replicas) == (True, 2)
        assert answer.request_id
        seen = await client.wait_ready("web", 2)
        assert all(info.state is InstanceState.READY for info in seen.instances)
        assert set(seen.hosts.values()) == {"box-a"}
        assert (await client.observe("web")).total == (await client.observe()).total == 2
        assert (await client.observe("api")).total == 0


async def test_scale_with_wait_returns_when_it_has_come_true(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        client = ScaleClient(gateway)
        progress: list[int] = []
        await client.scale("web", 3, wait=True, progress=lambda seen: progress.append(seen.total))
        assert (await client.observe("web")).total == 3
        assert progress[-1] == 3
        await client.scale("web", 1, wait=True)
        assert (await client.observe("web")).total == 1
        [before] = (await client.observe("web")).instances
        await client.scale("web", 1, config=ScaleConfig(env={"A": "1"}), wait=True)
        [after] = (await client.observe("web")).instances
        assert after.id != before.id
        assert (await fetch(after, "/env"))["A"] == "1"
        await client.scale("web", 1, config=ScaleConfig(), replace_config=True, wait=True)
        [plain] = (await client.observe("web")).instances
        assert "A" not in await fetch(plain, "/env")
        await client.scale("web", 0, wait=True)
        assert (await client.observe("web")).total == 0


async def test_a_refusal_and_a_cap_are_errors_that_carry_the_answer(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, max_instances=2) as (gateway, recorder):
        client = ScaleClient(gateway)
        with pytest.raises(ScaleRefused, match="unknown service 'nope'") as refused:
            await client.scale("nope", 1)
        assert refused.value.response.target_replicas == 0
        assert refused.value.code == "unknown_service"
        with pytest.raises(ScaleRefused, match="image"):
            await client.scale("web", 1, config=ScaleConfig(image="nginx"))
        assert recorder.events == []
        with pytest.raises(ScaleCapped, match="Capped to 2 instances") as capped:
            await client.scale("web", 5, wait=True)
        assert capped.value.response.target_replicas == 2
        assert capped.value.code == "capped"
        await serving(gateway, "web", 2)
        with pytest.raises(NameRefused):
            await client.scale("a.b", 1)


async def test_a_dry_run_answers_and_changes_nothing(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        answer = await ScaleClient(gateway).scale("web", 3, dry_run=True, wait=True)
        assert answer.target_replicas == 3
        assert recorder.events == []


@pytest.mark.slow
async def test_waiting_in_vain_names_the_newest_failure(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, service_table("web", "crash")) as (gateway, _):
        client = ScaleClient(gateway)
        with pytest.raises(WaitTimeout, match="no database to be found") as late:
            await client.scale("web", 2, wait=True, timeout=1.5)
        assert (late.value.ready, late.value.wanted) == (0, 2)
        with pytest.raises(WaitTimeout):
            await client.wait_ready("web", 1, timeout=0.2)


async def test_a_stopped_rollout_ends_the_wait(server: EmbeddedServer, tmp_path: Path) -> None:
    table = service_table("web", start_timeout=1.0)
    async with boxed(server, tmp_path, table) as (gateway, _):
        client = ScaleClient(gateway)
        await client.scale("web", 1, wait=True)
        with pytest.raises(ScaleError, match="rollout stopped after 3 failed replacements"):
            await client.scale("web", 1, config=ScaleConfig(memory_mib=8), wait=True)
        assert (await client.observe("web")).notices["web"].startswith("rollout stopped")
        assert (await client.observe("web")).total == 1  # the old one serves on


async def test_a_fleet_larger_than_a_page_is_observed_completely(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.gateway.client._PAGE", 2)
    async with boxed(server, tmp_path) as (gateway, _):
        await ScaleClient(gateway).scale("web", 5)
        await serving(gateway, "web", 5)
        seen = await ScaleClient(gateway).observe("web")
        assert seen.total == len({info.id for info in seen.instances}) == 5
        assert len(seen.hosts) == 5


async def test_a_reply_larger_than_max_payload_is_cut_and_counts_all_instances(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with boxed(server, tmp_path) as (gateway, _):
        await ScaleClient(gateway).scale("web", 6)
        await serving(gateway, "web", 6)
        monkeypatch.setattr(Connection, "max_payload", property(lambda self: 2048))
        body = encode(ScaleRequest(service="web", replicas=6))
        message = await gateway.request("box.scale", body)
        assert len(message.data) < 1024
        answer = decode(ScaleResponse, message.data)
        assert 0 < len(answer.instances) < 6
        assert (answer.current_replicas, message.headers["Box-Instances-Total"]) == (6, "6")
        seen = await ScaleClient(gateway).observe("web")
        assert seen.total == 6  # page by page


# ── when Boxes do not answer ─────────────────────────────────────────────────────────────


async def test_a_request_without_any_box_fails_at_once(server: EmbeddedServer) -> None:
    async with ScaleClient.connect(server.url) as client:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(NoBoxError, match=r"no Box answers on box\.scale"):
            await client.scale("web", 1, timeout=30)
        with pytest.raises(NoBoxError):
            await client.observe(timeout=30)
        assert loop.time() - started < 10


@pytest.mark.slow
async def test_a_silent_box_is_asked_again_every_second_and_ends_as_unknown(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        box = await FakeBox.listening(connection)
        with pytest.raises(RequestTimeout, match="outcome is unknown") as unknown:
            await client.scale("web", 1, timeout=2.5)
        requests = [decode(ScaleRequest, message.data) for message in box.requests]
        assert len(requests) == 3
        assert {request.request_id for request in requests} == {unknown.value.request_id}
        expiries = {message.headers["Box-Expires-At"] for message in box.requests}
        assert len(expiries) == 1
        assert parse_time(expiries.pop())


@pytest.mark.slow
async def test_a_late_answer_to_an_earlier_copy_counts(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        box = await FakeBox.listening(connection)
        asked = asyncio.ensure_future(client.scale("web", 3, timeout=30))
        await eventually(lambda: len(box.requests) == 3)
        box.answer(box.requests[0], answered())
        assert (await asked).accepted
        assert client.connection._requests == {}, "nobody waits any more for the other copies"


async def test_a_late_answer_counts_though_no_box_is_left_for_a_later_copy(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    take = PendingRequest.take

    def taken(inquiry: PendingRequest, message: Message) -> None:
        told.append(message.status)
        take(inquiry, message)

    monkeypatch.setattr(PendingRequest, "take", taken)
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        box = await FakeBox.listening(connection)
        asked = asyncio.ensure_future(client.scale("web", 3, timeout=30))
        await eventually(lambda: bool(box.requests))
        await box.leave()
        await eventually(lambda: 503 in told, what="nobody is there for a later copy")
        box.answer(box.requests[0], answered())
        assert (await asked).accepted


async def test_a_late_transient_refusal_is_not_final(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        box = await FakeBox.listening(connection)
        asked = asyncio.ensure_future(client.scale("web", 3, timeout=30))
        await eventually(lambda: len(box.requests) == 2)
        box.answer(box.requests[0], answered("not_ready"))
        box.answer(box.requests[1], answered())
        assert (await asked).accepted


@pytest.mark.slow
async def test_a_frozen_box_among_others_costs_a_second_and_has_one_effect(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection, boxed(server, tmp_path) as (gateway, _):
        frozen = await FakeBox.listening(connection)
        client = ScaleClient(gateway)
        for number in range(12):  # the queue group gives about half of them to the frozen one
            answer = await client.scale("web", number % 3, timeout=60)
            assert answer.target_replicas == number % 3
        assert frozen.requests


async def test_busy_and_not_ready_are_retried_and_other_refusals_are_not(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        busy, unready = answered("busy"), answered("not_ready")
        box = await FakeBox.listening(connection, busy, unready, answered())
        assert (await client.scale("web", 3)).accepted
        assert len({decode(ScaleRequest, m.data).request_id for m in box.requests}) == 1
        box._answers = [answered("unsupported_config", error="Busy, in words alone"), answered()]
        with pytest.raises(ScaleRefused, match="in words alone") as refused:
            await client.scale("web", 3)
        assert refused.value.code == "unsupported_config"
        box._answers = [busy] * 20
        with pytest.raises(ScaleRefused) as refused:
            await client.scale("web", 3, timeout=0.6)
        assert refused.value.code == "busy"


async def test_other_refusals_without_a_code_or_with_an_unknown_one_are_final(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        older = answered("x", error="Too busy to answer")
        box = await FakeBox.listening(
            connection,
            Answered(response=older.response),
            answered("a_new_word"),
        )
        for code in (None, "a_new_word"):
            with pytest.raises(ScaleRefused) as refused:
                await client.scale("web", 3)
            assert refused.value.code == code
        assert len(box.requests) == 2


async def test_the_last_refusal_is_raised_if_the_pause_outlasts_the_deadline(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def oversleep(seconds: float, deadline: float) -> bool:
        await asyncio.sleep(deadline - asyncio.get_running_loop().time() + 0.01)
        return True  # as it looked before

    monkeypatch.setattr(requests, "_pause", oversleep)
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        await FakeBox.listening(connection, answered("busy"))
        with pytest.raises(ScaleRefused) as refused:
            await client.scale("web", 3, timeout=0.6)
        assert refused.value.code == "busy"


@pytest.mark.parametrize("last", ["busy", "not_ready", "expired"])
async def test_a_transient_refusal_after_an_unanswered_copy_leaves_the_outcome_unknown(
    server: EmbeddedServer, last: str
) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        box = await FakeBox.listening(connection, None, *[answered(last)] * 9)
        with pytest.raises(RequestTimeout, match="outcome is unknown"):
            await client.scale("web", 3, timeout=1.5)
        assert len(box.requests) > 1


async def test_silence_after_the_request_was_taken_ends_the_wait_at_its_timeout(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        await connection.listen("box.instances", lambda message: None)
        await FakeBox.listening(connection, answered())
        with pytest.raises(WaitTimeout, match="0 of 3 Ready"):
            await client.scale("web", 3, wait=True, timeout=0.5)


async def test_a_request_that_was_never_sent_raises_cut_off(server: EmbeddedServer) -> None:
    async with ScaleClient.connect(server.url) as client:
        await server.kill()
        await eventually(lambda: not client.connection.connected)
        with pytest.raises(CutOff):
            await client.scale("web", 1, timeout=0.3)


async def test_an_outage_in_the_middle_is_ridden_out(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with Box.running(config), ScaleClient.connect(server.url) as client:
        await client.scale("web", 1, wait=True)
        await server.kill()
        await eventually(lambda: not client.connection.connected)
        asking = asyncio.ensure_future(client.scale("web", 2, timeout=30))
        await server.start()
        assert (await asking).target_replicas == 2
        await client.wait_ready("web", 2, timeout=20)
        check_history(await read_history(client.connection))


@pytest.mark.slow
async def test_the_environment_names_the_nats_server(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", server.url)
    async with ScaleClient.connect() as client:
        assert client.connection.connected
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    with pytest.raises(ConnectFailed):
        async with ScaleClient.connect():
            raise AssertionError("there is no server")


def test_errors_have_a_message_without_optional_data() -> None:
    response = answered("busy", error="").response
    assert "without a reason" in str(ScaleRefused(response))
    assert "capped to 3" in str(ScaleCapped(response))
    assert "request id" not in str(RequestTimeout("box.instances", 5))
    assert InstancesResponse(total=0, instances=[], hosts={}).notices == {}
