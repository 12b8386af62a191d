"""Users of `auth init` on a real server: each may do what its role needs, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import signal
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
from nats.js.api import ConsumerConfig

from bridge.auth.directory import AuthDirectory
from bridge.auth.roles import API, PROGRAMS, Role, allowed, requests, streams
from bridge.auth.site import SERVER_CONFIG, plan_site
from bridge.box.api.request_headers import requester
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.diagnostics import permissions
from bridge.bus.diagnostics.permissions import Right
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import api_subject, jetstream
from bridge.bus.jetstream.dead_letters import ensure_dead_stream
from bridge.bus.jetstream.publish import store
from bridge.config import load_nats
from bridge.errors import ConnectFailed, CutOff, NoReply, NotPermitted
from bridge.subjects import REQUEST_INFO
from tests.support import eventually

MEMBERS: Final = {
    Role.BOX: "box-a",
    Role.RUNNER: "runner-a",
    Role.GATEWAY: "gateway",
    Role.CONSUMER: "consumer",
    Role.DURABLE: "mailer",
    Role.RELAY: "relay",
    Role.OPERATOR: "operator",
    Role.INSTANCE: "web",
}
EDGE: Final = [role for role in PROGRAMS if role is not Role.BOX]
CLIENTS: Final = [role for role in EDGE if role is not Role.RUNNER]
EVENT: Final = b'{"instance_id":"web-1"}'


class Site:
    """A server with the users of a directory."""

    def __init__(self, users: AuthDirectory, server: EmbeddedServer) -> None:
        self.users = users
        self.server = server

    @contextlib.asynccontextmanager
    async def connect(self, name: str) -> AsyncIterator[Connection]:
        """A connection with the context of the user `name`."""
        flags = {"context": str(self.users.context_file(name)), "url": self.server.url}
        settings = load_nats(flags=flags, environ={})
        async with Connection.open(settings, name="test") as connection:
            yield connection

    def secret(self, name: str) -> Path:
        """The file with the secret of the user `name`."""
        seed, creds = self.users.secret_files(name)
        return creds if self.users.read().operator else seed

    async def reload(self) -> None:
        """Make the server read its configuration again."""
        seen = self.server.log_file.read_text().count("Reloaded server configuration")
        os.kill(self.server.pid, signal.SIGHUP)
        await eventually(
            lambda: self.server.log_file.read_text().count("Reloaded server configuration") > seen
        )


OPERATOR_MODE: Final = pytest.param(True, id="jwt", marks=pytest.mark.slow)


@pytest.fixture(params=[pytest.param(False, id="nkeys"), OPERATOR_MODE])
async def site(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    """A server with a user of each role, and the streams of a fleet with an event in it."""
    users = AuthDirectory(tmp_path / "auth")
    hosts, runners = ["box-a", "box-b"], ["runner-a"]
    users.create(plan_site(prefix="box", hosts=hosts, runners=runners, operator=request.param))
    users.add(Role.DURABLE, "mailer")
    users.add(Role.INSTANCE, "web")
    config = users.path / SERVER_CONFIG
    async with EmbeddedServer(tmp_path / "nats", config=config) as server:
        made = Site(users, server)
        async with made.connect("box-a") as box:
            await topology.ensure(box)
            await store(box, "box.events.web", EVENT)
            for key in ("box_services.web", "box_slots.web.0", "box_hosts.box-a"):
                await store(box, f"$KV.{key}", b"{}")
        for name in ("relay", "mailer"):
            async with made.connect(name) as reader:
                if name == "relay":
                    await ensure_dead_stream(reader)
                await jetstream(reader).add_consumer(
                    "BOX_EVENTS", ConsumerConfig(durable_name=name)
                )
        yield made


WRITTEN: Final = {
    Role.INSTANCE: ("BOX_REGISTRY",),
    Role.RUNNER: ("BOX_REGISTRY", "BOX_EVENTS", "KV_box_slots", "KV_box_hosts"),
}
"""The streams that a role may write to."""


async def stored(box: Connection) -> dict[str, tuple[int, int]]:
    """The first and last sequence of each stream. The record of a host expires."""
    js = jetstream(box)
    hosts = f"KV_{box.subjects.hosts_bucket}"
    found = {}
    for name in streams(box.subjects):
        state = (await js.stream_info(name)).state
        found[name] = (0 if name == hosts else state.first_seq, state.last_seq)
    return found


# ── the matrix ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", PROGRAMS)
async def test_a_user_may_do_what_its_role_needs_and_nothing_else(site: Site, role: Role) -> None:
    name = MEMBERS[role]
    async with site.connect(name) as connection:
        needed = permissions.needed(connection.settings, role, name)
        beyond = permissions.surplus(connection.settings, role, name)
        assert len(needed.publish) + len(needed.subscribe) > 4
        assert len(beyond.publish) + len(beyond.subscribe) > 20
        assert await permissions.lacking(connection, needed) == []
        assert await permissions.excess(connection, beyond) == []


FORBIDDEN: Final = [
    "box.events.web",
    "box.stats.box-a",
    "box.register.shop.shop-1",
    "box.deregister.shop.shop-1",
    "box.health.shop.shop-1",
    "box.dead.other",
    "$KV.box_services.web",
    "$KV.box_slots.web.0",
    "$KV.box_hosts.box-b",
    "$KV.box_admin.cordon.box-b",
    "_EDGE.operator.1",
    "_FLEET.box-a.1",
    "_R_.1",
    "$JS.ACK.BOX_EVENTS.other.1.1.1.1.1",
    *(
        f"{api}.{call}"
        for api in ("$JS.API", "$JS.fleet.API")
        for call in (
            "STREAM.DELETE.BOX_EVENTS",
            "STREAM.PURGE.KV_box_slots",
            "STREAM.UPDATE.BOX_EVENTS",
            "STREAM.CREATE.OTHER",
            "STREAM.MSG.GET.KV_box_services",
            "STREAM.MSG.DELETE.BOX_EVENTS",
            "DIRECT.GET.KV_box_services",
            "CONSUMER.CREATE.KV_box_services.spy",
            "CONSUMER.DURABLE.CREATE.BOX_EVENTS.other",
            "CONSUMER.DELETE.BOX_EVENTS.other",
            "CONSUMER.MSG.NEXT.BOX_EVENTS.other",
            "CONSUMER.LIST.KV_box_services",
            "STREAM.NAMES",
        )
    ),
]
"""What no user outside the account of the streams may publish, whatever the table of roles says."""


@pytest.mark.parametrize("role", CLIENTS)
async def test_no_user_of_the_edge_may_publish_what_is_a_box_s_or_another_user_s(
    site: Site, role: Role
) -> None:
    async with site.connect(MEMBERS[role]) as connection:
        tried = [Right(allow=subject, subject=subject) for subject in FORBIDDEN]
        denied = await permissions.lacking(
            connection, permissions.Rights(publish=tried, subscribe=[])
        )
        sent = [subject.replace(API, "$JS.fleet.API.") for subject in FORBIDDEN]
        assert denied == [f"publish {subject}" for subject in dict.fromkeys(sent)]


@pytest.mark.parametrize("role", PROGRAMS)
async def test_no_user_hears_the_replies_or_records_of_others(site: Site, role: Role) -> None:
    name = MEMBERS[role]
    subjects = [">", "_INBOX.>", "_EDGE.>", "_FLEET.>", "_EDGE.other.>", "$KV.>", "$JS.>", "_R_.>"]
    async with site.connect(name) as connection:
        tried = [Right(allow=subject, subject=subject) for subject in subjects]
        denied = await permissions.lacking(
            connection, permissions.Rights(publish=[], subscribe=tried)
        )
        assert denied == [f"subscribe {subject}" for subject in subjects]


# ── the server is no deputy ──────────────────────────────────────────────────────────────

TARGETS: Final = [
    "$KV.box_services.web",
    "$KV.box_services.evil",
    "$KV.box_slots.web.0",
    "$KV.box_hosts.box-a",
    "$KV.box_admin.cordon.box-b",
    "box.events.web",
    "box.events.forged",
    "box.register.web.web-9",
    "box.deregister.web.web-1",
    "box.dead.relay",
    "box.stats.box-a",
    "box.health.web.web-1",
    "box.scale",
    "box.admin",
    f"{API}STREAM.DELETE.BOX_EVENTS",
    f"{API}STREAM.PURGE.BOX_EVENTS",
    "$JS.fleet.API.STREAM.DELETE.BOX_EVENTS",
    "$JS.fleet.API.CONSUMER.DELETE.BOX_EVENTS.mailer",
    "$JS.fleet.API.CONSUMER.DELETE.BOX_EVENTS.relay",
    "$JS.ACK.BOX_EVENTS.mailer.1.1.1.1.0",
    "$JS.ACK.BOX_EVENTS.relay.1.1.1.1.0",
]


@pytest.mark.parametrize("role", EDGE)
async def test_a_reply_to_a_record_a_stream_or_a_box_changes_nothing(
    site: Site, role: Role
) -> None:
    name = MEMBERS[role]
    async with site.connect("box-a") as box, site.connect(name) as user:
        received: list[str] = []

        def answer(message: Message) -> None:
            received.append(message.subject)
            if message.reply:
                box.publish(message.reply, b'{"forged":true}')

        for subject in requests(box.subjects):
            await box.listen(subject, answer, queue="box")
        for subject in ("box.stats.*", "box.health.*.*"):
            await box.listen(subject, answer)
        await box.flush()
        before = await stored(box)
        needed = permissions.needed(user.settings, role, name)
        may = [right.allow for right in needed.publish]
        targets = [target for target in TARGETS if not allowed(may, in_fleet(target))]
        sent = 0
        for right, target in itertools.product(needed.publish, targets):
            for data, headers in bodies(right, target):
                user.publish(in_edge(user, right), data, headers=headers, reply=target)
                sent += 1
        for connection in (user, user, box, box):
            await connection.flush()
        assert sent > 20
        after = await stored(box)
        for stream in WRITTEN.get(role, ()):
            del before[stream], after[stream]
        assert after == before
        beyond = {subject for subject in received if not allowed(may, subject)}
        assert not beyond, "a reply came to a Box as a request"
        # Every message of the registry came on a subject that the user may publish.
        registry = (await jetstream(box).stream_info("BOX_REGISTRY")).state.messages
        assert registry == (2 if "BOX_REGISTRY" in WRITTEN.get(role, ()) else 0)
    for durable in ("mailer", "relay"):
        async with site.connect(durable) as reader:
            info = await jetstream(reader).consumer_info("BOX_EVENTS", durable)
            assert info.ack_floor is not None
            assert info.ack_floor.stream_seq == 0


def in_fleet(target: str) -> str:
    """`target` as the table of roles has it."""
    return target.replace("$JS.fleet.API.", API)


def in_edge(user: Connection, right: Right) -> str:
    """The subject of `right` as its user sends it."""
    call = right.subject.removeprefix(API)
    return api_subject(user, call) if call != right.subject else right.subject


def bodies(right: Right, target: str) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Messages for `right` that the server, or a Box, replies to in different ways."""
    yield right.data, dict(right.headers)
    if right.subject.startswith(f"{API}CONSUMER.CREATE."):
        yield push_to(target, right.subject), {}
    elif ".CONSUMER.DELETE." not in right.subject:  # a user may delete its own durable
        yield b"", {}


def push_to(target: str, subject: str) -> bytes:
    """A request for a consumer that delivers the stored events to `target`."""
    stream, name, *wanted = subject.removeprefix(f"{API}CONSUMER.CREATE.").split(".")
    config = {"name": name, "deliver_subject": target, "ack_policy": "none"}
    config |= {"filter_subject": ".".join(wanted)} if wanted else {}
    return json.dumps({"stream_name": stream, "config": config}).encode()


# ── a rogue runner ───────────────────────────────────────────────────────────────────────

DECISIONS: Final = [
    "$KV.box_services.web",
    "$KV.box_services.evil",
    "$KV.box_admin.cordon.box-a",
    "$KV.box_admin.cordon.runner-a",
    "$KV.box_hosts.box-a",
    "$KV.box_hosts.box-b",
    "box.stats.box-a",
    "_INBOX.x.1",
    "_R_.x.1",
    "_FLEET.box-a.x.1",
    "box.scale",
    "box.admin",
    "box.dead.relay",
    "$JS.ACK.BOX_EVENTS.relay.1.1.1.1.1",
    *(
        f"{API}{call}"
        for call in (
            "STREAM.CREATE.KV_box_services",
            "STREAM.UPDATE.KV_box_services",
            "STREAM.DELETE.BOX_EVENTS",
            "STREAM.PURGE.KV_box_admin",
            "STREAM.MSG.DELETE.BOX_EVENTS",
            "CONSUMER.CREATE.BOX_EVENTS.relay",
            "CONSUMER.CREATE.BOX_EVENTS.relay.box.events.*",
            "CONSUMER.DELETE.BOX_EVENTS.relay",
        )
    ),
]


async def test_a_rogue_runner_raises_no_target_drains_no_host_and_ends_no_box(site: Site) -> None:
    async with site.connect("runner-a") as runner:
        tried = [Right(allow=subject, subject=subject) for subject in DECISIONS]
        listened = ["box.scale", "box.admin", "$SRV.*", "_FLEET.box-a.>", "_R_.>"]
        rights = permissions.Rights(
            publish=tried, subscribe=[Right(allow=item, subject=item) for item in listened]
        )
        assert await permissions.lacking(runner, rights) == [
            *(f"publish {subject.replace(API, '$JS.fleet.API.')}" for subject in DECISIONS),
            *(f"subscribe {subject}" for subject in listened),
        ]


# ── durable readers ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("role", [role for role in PROGRAMS if role is not Role.DURABLE])
async def test_no_other_user_changes_or_ends_a_durable_by_creating_its_consumer(
    site: Site, role: Role
) -> None:
    config: dict[str, object] = {"name": "mailer", "inactive_threshold": 1_000_000}
    ephemeral: dict[str, object] = {
        "name": "mailer",
        "ack_policy": "none",
        "deliver_subject": "_EDGE.x.1",
    }
    async with site.connect(MEMBERS[role]) as user:
        for name, given in itertools.product(
            ("mailer", "mailer.box.events.*"), (config, ephemeral)
        ):
            filtered: dict[str, object] = {}
            if name.endswith("*"):
                filtered["filter_subject"] = "box.events.*"
            for verb in ("CREATE", "DURABLE.CREATE"):
                body = {"stream_name": "BOX_EVENTS", "config": given | filtered}
                subject = api_subject(user, f"CONSUMER.{verb}.BOX_EVENTS.{name}")
                with pytest.raises(NotPermitted):
                    await user.request(subject, json.dumps(body).encode())
    async with site.connect("mailer") as reader:
        info = await jetstream(reader).consumer_info("BOX_EVENTS", "mailer")
        assert info.config.inactive_threshold in (None, 0)
        assert info.config.deliver_subject is None


async def test_a_durable_that_is_added_is_out_of_reach_of_gateways_after_a_reload(
    site: Site,
) -> None:
    body = json.dumps({"stream_name": "BOX_EVENTS", "config": {"name": "billing"}}).encode()
    async with site.connect("gateway") as gateway:
        subject = api_subject(gateway, "CONSUMER.CREATE.BOX_EVENTS.billing")
        assert b"error" not in (await gateway.request(subject, body)).data
        site.users.add(Role.DURABLE, "billing")
        await site.reload()

        async def is_refused() -> bool:
            try:
                await gateway.request(subject, body)
            except NotPermitted:
                return True
            except (CutOff, NoReply):  # the server cuts its users off some time after a reload
                pass
            return False

        await eventually(is_refused)


async def test_an_operator_finds_the_boxes_with_nats_micro(site: Site) -> None:
    found: list[bytes] = []
    async with contextlib.AsyncExitStack() as stack:
        operator = await stack.enter_async_context(site.connect("operator"))
        for name in ("box-a", "box-b"):
            box = await stack.enter_async_context(site.connect(name))
            await box.listen("$SRV.*", functools.partial(_answer_with, box, name))
            await box.flush()
        inbox = operator.new_inbox()
        await operator.listen(inbox, lambda message: found.append(message.data))
        operator.publish("$SRV.PING", reply=inbox)
        await eventually(lambda: sorted(found) == [b"box-a", b"box-b"])


async def test_an_operator_alone_reaches_the_logs_of_a_host(site: Site) -> None:
    async with (
        site.connect("box-a") as box,
        site.connect("operator") as operator,
        site.connect("gateway") as gateway,
    ):
        await box.listen("box.logs.box-a", functools.partial(_answer_with, box, "logs"))
        await box.flush()
        assert (await operator.request("box.logs.box-a", b"{}")).data == b"logs"
        with pytest.raises(NotPermitted):
            await gateway.request("box.logs.box-a", b"{}")


@pytest.mark.parametrize("name", ["operator", "gateway"])
async def test_a_box_learns_the_user_of_a_request_from_the_server_and_no_forged_name(
    site: Site, name: str
) -> None:
    found: list[str] = []

    async with site.connect("box-a") as box, site.connect(name) as user:
        assert box.settings.request_info
        assert not user.settings.request_info

        def answer(message: Message) -> None:
            found.append(requester(message))
            box.publish(message.reply, b"{}")

        await box.listen("box.scale", answer, queue="box")
        await box.flush()
        for forged in ({}, {REQUEST_INFO: '{"user":"root"}'}):
            await user.request("box.scale", b"{}", headers=forged)
    known = site.users.read()
    [member] = [member for member in known.users if member.name == name]
    assert found == [name if known.operator else member.key] * 2


def _answer_with(box: Connection, name: str, message: Message) -> None:
    box.publish(message.reply, name.encode())


# ── reload ───────────────────────────────────────────────────────────────────────────────


async def test_a_reload_takes_a_new_user_and_keeps_the_connections_of_others(site: Site) -> None:
    async with site.connect("operator") as operator:
        assert not site.secret("billing").exists()
        site.users.add(Role.DURABLE, "billing")
        with pytest.raises(ConnectFailed):
            async with site.connect("billing"):
                raise AssertionError("the server does not know the user yet")
        await site.reload()
        async with site.connect("billing") as billing:
            await jetstream(billing).stream_info("BOX_EVENTS")
        assert operator.connected
        await jetstream(operator).stream_info("BOX_EVENTS")


async def test_a_revoked_user_is_disconnected_by_the_reload_and_stays_out(site: Site) -> None:
    async with site.connect("mailer") as mailer:
        seed, context = site.secret("mailer"), site.users.context_file("mailer")
        kept = {file: file.read_text() for file in (seed, context)}
        site.users.revoke("mailer")
        await site.reload()
        await eventually(lambda: not mailer.connected)
    for file, text in kept.items():
        file.write_text(text)
    with pytest.raises(ConnectFailed, match="Authorization"):
        async with site.connect("mailer"):
            raise AssertionError("the key is revoked")


async def test_a_rotated_key_replaces_the_old_one_and_the_client_reconnects_with_it(
    site: Site,
) -> None:
    async with site.connect("gateway") as gateway:
        old = site.secret("gateway").read_text()
        site.users.rotate("gateway")
        assert site.secret("gateway").read_text() != old
        ups: list[bool] = []
        gateway.watch(ups.append)
        await site.reload()
        await eventually(lambda: ups[-1:] == [True])
        await jetstream(gateway).stream_info("BOX_EVENTS")
    site.secret("gateway").write_text(old)
    with pytest.raises(ConnectFailed, match="Authorization"):
        async with site.connect("gateway"):
            raise AssertionError("the old key is valid")


async def test_nobody_connects_without_a_key(site: Site) -> None:
    with pytest.raises(ConnectFailed, match="Authorization"):
        async with Connection.open(load_nats(flags={"url": site.server.url}, environ={}), name="x"):
            raise AssertionError("no key was given")


async def test_another_instance_of_the_service_is_out_of_reach_of_an_instance_s_own_user(
    site: Site,
) -> None:
    site.users.add(Role.INSTANCE, "web.web-1")
    await site.reload()
    async with site.connect("web.web-1") as instance:
        await store(instance, "box.register.web.web-1", b"{}")
        with pytest.raises(NotPermitted):
            await instance.request("box.register.web.web-2", b"{}")


def test_every_file_can_be_read_by_its_owner_alone(tmp_path: Path) -> None:
    users = AuthDirectory(tmp_path / "auth")
    mask = os.umask(0)
    try:
        users.create(plan_site(prefix="box", url="nats://h:1", hosts=["box-a"]))
        users.rotate("box-a")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(users.path.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in users.path.iterdir()}
    assert len(modes) == 13
    assert set(modes.values()) == {0o600}
