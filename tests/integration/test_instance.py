"""Code that registers itself: announced while it serves, withdrawn however it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge import Registration, register
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.errors import BusError, ConfigError, NotPermitted, ProtocolError
from bridge.protocol import (
    InstanceDeregistration,
    InstanceHealth,
    InstanceRegistration,
    decode,
    encode,
)
from bridge.settings import Timing
from tests.paths import REPOSITORY, SELF_REGISTERED
from tests.support import Recorder, connect, eventually

QUICK = Timing(sample=0.05, registration_renew=0.2, registration_ttl=1)
ENDPOINT = "127.0.0.1:8080"


@asynccontextmanager
async def gatewayed(server: EmbeddedServer) -> AsyncIterator[tuple[Connection, Recorder]]:
    """A gateway's connection to a fleet without any Box, and what it hears."""
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        yield connection, await Recorder.listening(connection)


@asynccontextmanager
async def program(server: EmbeddedServer, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The test program in a process of its own, registered."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(SELF_REGISTERED), "0", *words),
        stdout=asyncio.subprocess.PIPE,
        env={"NATS_URL": server.url, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"registered\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def announced(recorder: Recorder) -> list[InstanceRegistration]:
    return [
        decode(InstanceRegistration, message.data)
        for message in recorder.messages
        if message.subject.startswith("box.register.")
    ]


def withdrawn(recorder: Recorder) -> list[InstanceDeregistration]:
    return [
        decode(InstanceDeregistration, message.data)
        for message in recorder.messages
        if message.subject.startswith("box.deregister.")
    ]


async def reason(recorder: Recorder) -> str:
    """Why the one instance was withdrawn, once it was; nothing may follow that."""
    [gone] = await eventually(lambda: withdrawn(recorder))
    assert ".deregister." in recorder.messages[-1].subject
    return gone.reason


# ── announced, renewed, withdrawn ────────────────────────────────────────────────────────


async def test_it_is_registered_renewed_as_a_lease_and_withdrawn_when_the_block_ends(
    server: EmbeddedServer,
) -> None:
    async with gatewayed(server) as (connection, recorder):
        async with register(
            service="web",
            endpoint=ENDPOINT,
            metadata={"zone": "a"},
            connection=connection,
            timing=QUICK,
        ) as registration:
            assert registration.instance_id.startswith("web-")
            await eventually(lambda: len(announced(recorder)) >= 3)
        for message in recorder.messages[:3]:
            assert message.subject == f"box.register.web.{registration.instance_id}"
            assert message.headers["Nats-TTL"] == "1"
        told = announced(recorder)[0]
        assert (told.instance_id, told.service) == (registration.instance_id, "web")
        assert (told.endpoint, told.metadata) == (ENDPOINT, {"zone": "a"})
        assert await reason(recorder) == "it has ended"
        assert registration.withdrawn


async def test_an_error_withdraws_it_and_is_the_reason(server: EmbeddedServer) -> None:
    async with gatewayed(server) as (connection, recorder):
        with pytest.raises(LookupError):
            async with register(service="web", endpoint=ENDPOINT, connection=connection):
                raise LookupError("no more")
        assert await reason(recorder) == "LookupError: no more"


async def test_sigterm_withdraws_it_at_once_and_ends_the_block_and_the_program(
    server: EmbeddedServer,
) -> None:
    async with gatewayed(server) as (_, recorder), program(server) as process:
        process.send_signal(signal.SIGTERM)
        out, _ = await process.communicate()
        assert await reason(recorder) == "SIGTERM"
        assert (process.returncode, out) == (143, b"cleaned up\n")


async def test_a_program_that_handles_sigterm_itself_goes_on_doing_so(
    server: EmbeddedServer,
) -> None:
    async with gatewayed(server) as (_, recorder), program(server, "own-handler") as process:
        process.send_signal(signal.SIGTERM)
        out, _ = await process.communicate()
        assert await reason(recorder) == "it has ended"
        assert (process.returncode, out) == (0, b"the block is over\ncleaned up\n")


async def test_the_registration_of_a_killed_program_ends_with_its_lease(
    server: EmbeddedServer,
) -> None:
    async with gatewayed(server) as (connection, recorder), program(server) as process:

        async def kept() -> int:
            return (await jetstream(connection).stream_info("BOX_REGISTRY")).state.messages

        assert await kept() == 1
        process.kill()

        async def lapsed() -> bool:
            return await kept() == 0

        await eventually(lapsed)
        assert not withdrawn(recorder)


@pytest.mark.slow
async def test_it_is_registered_again_after_the_server_has_lost_everything(
    server: EmbeddedServer,
) -> None:
    slow = Timing(registration_renew=3600)
    async with (
        gatewayed(server) as (gateway, _),
        connect(server.url) as connection,
        register(service="web", endpoint=ENDPOINT, connection=connection, timing=slow),
    ):
        await server.kill()
        await server.start()
        await gateway.wait_connected()

        async def mended() -> bool:
            try:
                await topology.ensure(gateway)  # as Boxes do
                state = (await jetstream(gateway).stream_info("BOX_REGISTRY")).state
            except BusError:
                return False
            return state.messages == 1

        await eventually(mended)


async def test_what_its_box_withdraws_it_does_not_announce_again(server: EmbeddedServer) -> None:
    async with gatewayed(server) as (connection, recorder):
        async with register(
            service="web", endpoint=ENDPOINT, connection=connection, timing=QUICK
        ) as registration:
            gone = InstanceDeregistration(
                instance_id=registration.instance_id, service="web", reason="scaled down"
            )
            subject = f"box.deregister.web.{registration.instance_id}"
            other = encode(InstanceDeregistration(instance_id="web-x", service="web"))
            connection.publish(subject, other)
            connection.publish(subject, b"{")
            renewals = len(announced(recorder))
            await eventually(lambda: len(announced(recorder)) > renewals)
            assert not registration.withdrawn
            connection.publish(subject, encode(gone))
            await eventually(lambda: registration.withdrawn)
            await eventually(lambda: encode(gone) in [m.data for m in recorder.messages])
            await connection.flush()  # a renewal may just have been under way
            after = len(recorder.messages)
            registration.mark(healthy=False)
            await asyncio.sleep(5 * QUICK.registration_renew)  # five renewals that must not come
            assert len(recorder.messages) == after
        await connection.flush()
        assert len(recorder.messages) == after  # nor is it withdrawn twice
        assert connection.metrics.refusals() == {
            "deregister: malformed": 1,
            "deregister: subject and payload disagree": 1,
        }


@pytest.mark.slow
async def test_an_outage_bounds_the_withdrawal(server: EmbeddedServer, unused_port: int) -> None:
    async with gatewayed(server) as (connection, _):
        async with asyncio.timeout(60):
            async with register(service="web", endpoint=ENDPOINT, connection=connection):
                await server.kill()
                await eventually(lambda: not connection.connected)
        await server.start()


# ── what it says of itself ───────────────────────────────────────────────────────────────


async def heard(connection: Connection, registration: Registration) -> list[InstanceHealth]:
    """What the instance reports, as it comes."""
    reports: list[InstanceHealth] = []
    subject = f"box.health.web.{registration.instance_id}"
    await connection.listen(subject, lambda m: reports.append(decode(InstanceHealth, m.data)))
    await connection.flush()
    return reports


async def test_health_is_reported_when_it_changes_and_again_so_that_it_stays_fresh(
    server: EmbeddedServer,
) -> None:
    async with (
        gatewayed(server) as (connection, _),
        register(
            service="web", endpoint=ENDPOINT, connection=connection, timing=QUICK
        ) as registration,
    ):
        reports = await heard(connection, registration)
        registration.report(inflight=2, cpu_percent=12.5, memory_bytes=4096)
        said = InstanceHealth(cpu_percent=12.5, memory_bytes=4096, inflight_requests=2)
        await eventually(lambda: reports[:2] == [said, said])
        async with registration.request():
            await eventually(lambda: reports[-1].inflight_requests == 3)
        await eventually(lambda: reports[-1].inflight_requests == 2)


async def test_many_changes_make_few_reports(server: EmbeddedServer) -> None:
    slow = Timing(sample=3600)
    async with (
        gatewayed(server) as (connection, _),
        register(
            service="web", endpoint=ENDPOINT, connection=connection, timing=slow
        ) as registration,
    ):
        reports = await heard(connection, registration)
        for _ in range(1000):
            async with registration.request():
                await asyncio.sleep(0)
        await eventually(lambda: reports)
        await connection.flush()
        assert len(reports) == 1


async def test_an_unhealthy_instance_updates_its_registration_at_once(
    server: EmbeddedServer,
) -> None:
    slow = Timing(registration_renew=3600)
    async with (
        gatewayed(server) as (connection, recorder),
        register(
            service="web",
            endpoint=ENDPOINT,
            metadata={"a": "b"},
            connection=connection,
            timing=slow,
        ) as registration,
    ):
        reports = await heard(connection, registration)
        registration.report(healthy=False)
        said = {"a": "b", "box-healthy": "false"}
        await eventually(lambda: [a.metadata for a in announced(recorder)][-1:] == [said])
        await eventually(lambda: reports and not reports[-1].healthy)
        registration.report(healthy=True)
        await eventually(lambda: [a.metadata for a in announced(recorder)][-1:] == [{"a": "b"}])


@pytest.mark.parametrize(
    "wrong",
    [
        {"inflight": -1},
        {"inflight": 2**32},
        {"cpu_percent": -0.5},
        {"cpu_percent": float("nan")},
        {"memory_bytes": 2**64},
    ],
)
async def test_an_invalid_value_is_refused_before_it_is_published(
    server: EmbeddedServer, wrong: dict[str, float]
) -> None:
    async with (
        gatewayed(server) as (connection, _),
        register(service="web", endpoint=ENDPOINT, connection=connection) as registration,
    ):
        with pytest.raises(ProtocolError):
            registration.report(**wrong)  # type: ignore[arg-type]


# ── what is given, and what is not ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"endpoint": "nowhere"}, 'is not "host:port"'),
        ({"endpoint": "10.0.0.5:0"}, 'is not "host:port"'),
        ({"endpoint": "fd00::5:80"}, 'is not "host:port"'),
        ({"service": "a.b"}, "is not a name"),
        ({"instance_id": ">"}, "is not a name"),
        ({"metadata": {"k": "ä" * 8192}}, "16385 bytes is larger than 16 KiB"),
    ],
)
async def test_wrong_arguments_are_refused_up_front(wrong: dict[str, str], said: str) -> None:
    arguments = {"service": "web", "endpoint": ENDPOINT, **wrong}
    with pytest.raises(ProtocolError, match=said):
        async with register(**arguments):  # type: ignore[arg-type]
            pytest.fail("it was taken")


async def test_outside_of_a_box_service_and_endpoint_must_be_given() -> None:
    with pytest.raises(ConfigError, match="BOX_SERVICE"):
        async with register(endpoint=ENDPOINT):
            pytest.fail("it was taken")
    with pytest.raises(ConfigError, match="BOX_ADDRESS and PORT"):
        async with register(service="web"):
            pytest.fail("it was taken")


async def test_a_user_who_may_not_register_gets_an_error(tmp_path: Path) -> None:
    file = tmp_path / "nats.conf"
    file.write_text(
        "authorization { users: [{ user: box, password: b }, { user: u, password: p, permissions: "
        '{ publish: ["box.health.>"], subscribe: ["_INBOX.>"] } }] }'
    )
    async with EmbeddedServer(tmp_path / "nats", config=file) as server:
        async with connect(server.url, user="box", password="b") as connection:
            await topology.ensure(connection)
        async with connect(server.url, user="u", password="p") as connection:
            with pytest.raises(NotPermitted, match=r"may not publish on box\.register\.web\."):
                async with register(service="web", endpoint=ENDPOINT, connection=connection):
                    pytest.fail("it was taken")
