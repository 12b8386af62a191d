"""What NATS users must be allowed: all of it is tried for real, and the docs grant just that."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge.box.daemon import Box
from bridge.bus.diagnostics import permissions
from bridge.bus.diagnostics.permissions import Rights
from bridge.bus.jetstream.follower import Start
from bridge.cli.examination import examine
from bridge.gateway.client import ScaleClient
from bridge.gateway.events.stream import EventStream
from bridge.gateway.routes.table import RouteTable
from bridge.protocol import InstanceEvent
from bridge.settings import NatsConfig
from tests.integration.test_connection import configured
from tests.integration.test_doctor import FAIL, OK, box_file, found, statuses
from tests.paths import DOCS
from tests.support import box_config, connect


def documented() -> str:
    """The users of docs/reference/permissions.md, as a server's configuration."""
    page = (DOCS / "reference" / "permissions.md").read_text()
    block: str = re.findall(r"```\n(authorization .*?)```", page, re.DOTALL)[0]
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
                kind: ", ".join(f'"{subject}"' for subject in dict.fromkeys(subjects))
                for kind, subjects in granted.items()
            }
            users.append(
                f"{{ user: {name}, password: p, permissions: {{ "
                f"publish: [{quoted['publish']}], subscribe: [{quoted['subscribe']}] }} }}"
            )
    return "authorization { users: [\n" + "\n".join(users) + "\n] }", missing


async def test_each_right_that_is_missing_is_named_and_nothing_else(tmp_path: Path) -> None:
    settings = NatsConfig()
    for number, rights in enumerate(
        (permissions.of_box(settings, "box-a"), permissions.of_gateway(settings))
    ):
        text, missing = users_without(rights)
        assert len(missing) > 5
        directory = tmp_path / str(number)
        directory.mkdir()
        async with configured(directory, text) as server:
            for user, what in missing.items():
                async with connect(server.url, user=user, password="p") as connection:
                    assert await permissions.lacking(connection, rights) == [what]


async def test_a_denial_in_a_domain_names_what_the_server_checks(tmp_path: Path) -> None:
    denied = '{ publish: { deny: "$JS.API.STREAM.CREATE.*" } }'
    user = f"{{ user: u, password: p, permissions: {denied} }}"
    text = f"jetstream {{ domain: hub }}\nauthorization {{ users: [{user}] }}"
    async with (
        configured(tmp_path, text) as server,
        connect(server.url, user="u", password="p", domain="hub") as connection,
    ):
        rights = permissions.of_box(connection.settings, "box-a")
        missing = ["publish $JS.API.STREAM.CREATE.*"]
        assert await permissions.lacking(connection, rights) == missing


async def test_what_the_docs_grant_is_enough_and_no_more_than_is_tried(tmp_path: Path) -> None:
    settings = NatsConfig()
    for rights, user in (
        (permissions.of_box(settings, "box-a"), "box"),
        (permissions.of_gateway(settings), "gateway"),
    ):
        [granted] = re.findall(
            rf"user: {user},.*?permissions: {{(.*?)}} }}", documented(), re.DOTALL
        )
        publish, subscribe = granted.split("subscribe:")
        assert set(re.findall(r'"(.+?)"', publish)) == {right.allow for right in rights.publish}
        assert set(re.findall(r'"(.+?)"', subscribe)) == {right.allow for right in rights.subscribe}


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
        assert told.says == "as Box box-a this user may not publish box.events.*"
        assert "docs/reference/permissions.md" in told.cure
        assert statuses(report, "nats", "jetstream", "journal") == [OK, OK, OK]
