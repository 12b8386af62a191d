"""What NATS users must be allowed: each role's permissions are tried for real."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from nats.js.api import ConsumerConfig

from bridge.auth.roles import PROGRAMS, Role, streams
from bridge.box.daemon import Box
from bridge.bus.diagnostics import permissions
from bridge.bus.diagnostics.permissions import Rights
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.dead_letters import ensure_dead_stream
from bridge.bus.jetstream.start_position import Start
from bridge.cli.examination import examine
from bridge.gateway.client import ScaleClient
from bridge.gateway.events.stream import EventStream
from bridge.gateway.routes.table import RouteTable
from bridge.protocol import InstanceEvent
from bridge.settings import NatsConfig
from docs.generate.roles import one_account
from tests.integration.test_connection import configured
from tests.integration.test_doctor import FAIL, OK, box_file, found, statuses
from tests.support import box_config, connect


def documented() -> str:
    """The users in one account of the reference of roles, as a server's configuration."""
    block = one_account()
    return block.replace("$BOX_PASSWORD", "p").replace("$GATEWAY_PASSWORD", "p")


def users_without(rights: Rights) -> tuple[str, dict[str, str]]:
    """Users who have all of `rights` but one each; and what each of them has not."""
    parts = (("publish", rights.publish), ("subscribe", rights.subscribe))
    users: list[str] = []
    missing: dict[str, str] = {}
    for act, listed in parts:
        for allow in dict.fromkeys(right.allow for right in listed):
            granted = {
                kind: [right.allow for right in whole if (kind, right.allow) != (act, allow)]
                for kind, whole in parts
            }
            name = f"u{len(users)}"
            missing[name] = f"{act} {allow}"
            quoted = {
                # An empty list would allow everything.
                kind: ", ".join(f'"{subject}"' for subject in dict.fromkeys(["none", *subjects]))
                for kind, subjects in granted.items()
            }
            users.append(
                f"{{ user: {name}, password: p, permissions: {{ "
                f"publish: [{quoted['publish']}], subscribe: [{quoted['subscribe']}] }} }}"
            )
    return "authorization { users: [\n" + "\n".join(users) + "\n] }", missing


@pytest.mark.parametrize("role", PROGRAMS)
async def test_each_right_that_is_missing_is_named_and_nothing_else(
    tmp_path: Path, role: Role
) -> None:
    rights = permissions.needed(NatsConfig(), role, "box-a")
    text, missing = users_without(rights)
    assert len(missing) > 4
    async with configured(tmp_path, text) as server:
        for user, what in missing.items():
            async with connect(server.url, user=user, password="p") as connection:
                assert await permissions.lacking(connection, rights) == [what]


@pytest.mark.slow
@pytest.mark.parametrize("role", PROGRAMS)
async def test_each_right_beyond_the_role_is_named_and_nothing_else(
    tmp_path: Path, role: Role
) -> None:
    beyond = permissions.surplus(NatsConfig(), role, "box-a")
    users = [("publish", right) for right in beyond.publish]
    users += [("subscribe", right) for right in beyond.subscribe]
    lines = []
    for number, (act, right) in enumerate(users):
        other = "subscribe" if act == "publish" else "publish"
        rights = f'{act}: ["{right.subject}", "_INBOX.>"], {other}: ["_INBOX.>"]'
        lines.append(f"{{ user: u{number}, password: p, permissions: {{ {rights} }} }}")
    text = "authorization { users: [\n" + "\n".join(lines) + "\n] }"
    inboxes = {"publish _INBOX.>", "subscribe _INBOX.>"}
    async with configured(tmp_path, text) as server:
        for number, (act, right) in enumerate(users):
            async with connect(server.url, user=f"u{number}", password="p") as connection:
                named = await permissions.excess(connection, beyond)
                assert set(named) - inboxes == {f"{act} {right.allow}"} - inboxes


async def test_the_checks_of_a_user_who_may_do_everything_change_nothing(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        await ensure_dead_stream(connection)
        js = jetstream(connection)
        await js.add_consumer("BOX_EVENTS", ConsumerConfig(durable_name="mailer"))
        names = [*streams(connection.subjects), "BOX_DEAD"]
        before = {name: (await js.stream_info(name)).state for name in names}
        for role in PROGRAMS:
            for rights in (
                permissions.needed(connection.settings, role, "mailer"),
                permissions.surplus(connection.settings, role, "mailer"),
            ):
                assert await permissions.lacking(connection, rights) == []
        assert {name: (await js.stream_info(name)).state for name in names} == before
        assert (await js.consumer_info("BOX_EVENTS", "mailer")).num_waiting == 0


async def test_a_denial_in_a_domain_names_what_the_server_checks(tmp_path: Path) -> None:
    denied = '{ publish: { deny: "$JS.API.STREAM.CREATE.BOX_EVENTS" } }'
    user = f"{{ user: u, password: p, permissions: {denied} }}"
    text = f"jetstream {{ domain: hub }}\nauthorization {{ users: [{user}] }}"
    async with (
        configured(tmp_path, text) as server,
        connect(server.url, user="u", password="p", domain="hub") as connection,
    ):
        rights = permissions.needed(connection.settings, Role.BOX, "box-a")
        missing = ["publish $JS.hub.API.STREAM.CREATE.BOX_EVENTS"]
        assert await permissions.lacking(connection, rights) == missing


async def test_a_fleet_works_with_the_documented_permissions_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with configured(tmp_path, documented()) as server:
        config = box_config(tmp_path, server.url)
        as_box = replace(config, nats=replace(config.nats, user="box", password="p"))
        as_gateway = NatsConfig(url=server.url, user="gateway", password="p")
        async with Box.running(as_box), ScaleClient.connect(settings=as_gateway) as client:
            assert (await client.scale("web", 2, wait=True)).accepted
            async with (
                RouteTable.open(client.connection, "web") as table,
                EventStream.open(client.connection, "web", start=Start.FIRST) as events,
            ):
                await table.wait_ready("web", 2, timeout=20)
                assert isinstance(await anext(events), InstanceEvent)
            assert (await client.scale("web", 0)).accepted
        text = (tmp_path / "box-a.toml").read_text()
        (tmp_path / "box-a.toml").write_text(
            text.replace("[nats]", '[nats]\nuser = "box"\npassword = "p"')
        )
        report = await examine(tmp_path / "box-a.toml", {})
        assert statuses(report, "permissions", "topology") == [OK, OK], report
    told = [item.getMessage() for item in caplog.records if item.name != "asyncio"]
    assert not [line for line in told if "ermissions" in line], told


async def test_a_denial_is_reported_beside_all_other_checks(tmp_path: Path) -> None:
    user = '{ user: u, password: p, permissions: { publish: { deny: "box.events.*" } } }'
    async with configured(tmp_path, f"authorization {{ users: [{user}] }}") as server:
        report = await examine(None, {"url": server.url.replace("//", "//u:p@")})
        assert report.ok  # a gateway publishes no events
        file = box_file(tmp_path, server.url.replace("//", "//u:p@"))
        report = await examine(file, {})
        told = found(report, "permissions")
        assert told.status is FAIL
        assert told.message == "as Box box-a this user may not publish box.events.*"
        assert "docs/reference/permissions.md" in told.fix
        assert told.fix.endswith(': publish: { allow: ["box.events.*"] }')
        assert statuses(report, "nats", "jetstream", "journal") == [OK, OK, OK]


def test_what_is_named_becomes_a_line_of_the_server_s_configuration() -> None:
    named = ["publish a.*", "publish b", "subscribe c"]
    line = permissions.config_line(named)
    assert line == 'publish: { allow: ["a.*", "b"] }, subscribe: { allow: ["c"] }'
    line = permissions.config_line(named[2:], deny=True)
    assert line == 'subscribe: { deny: ["c"] }'
