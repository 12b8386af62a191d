"""`box-bridge auth`, and every verb with the credentials of its role alone."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from unittest import mock

import pytest

from bridge.auth.site import SERVER_CONFIG
from bridge.bus.embedded_server import EmbeddedServer
from tests.e2e.program import Result, run, running
from tests.receiver import Request, receiving
from tests.support import FIRST_PORT, TIMING, eventually, service_table

REJECTED: Final = 400  # the relay makes a dead letter of the event at once


class Fleet:
    """Two Boxes, and a directory of users beside them."""

    def __init__(self, directory: Path, server: EmbeddedServer) -> None:
        self.directory = directory
        self.server = server

    def flags(self, user: str) -> list[str]:
        context = self.directory / "auth" / f"{user}.json"
        return ["--context", str(context), "-s", self.server.url]

    async def run(self, user: str, *arguments: object, code: int = 0) -> str:
        """The output of a verb that `user` runs."""
        done = await run(*arguments, *self.flags(user), cwd=self.directory)
        assert done.code == code, (arguments, done.out, done.err)
        return done.out + done.err

    def violations(self) -> list[str]:
        """The denials in the server's log."""
        lines = self.server.log_file.read_text().splitlines()
        return [line for line in lines if "Violation" in line]


@contextlib.asynccontextmanager
async def box(fleet: Fleet, name: str, first_port: int) -> AsyncIterator[None]:
    home = fleet.directory / name
    home.mkdir()
    nats = f'[nats]\nurl = "{fleet.server.url}"\ncontext = "{fleet.directory}/auth/{name}.json"'
    ports = f"{first_port}-{first_port + 99}"
    text = f'[box]\nname = "{name}"\nports = "{ports}"\non_exit = "drain"\n{nats}\n{TIMING}\n'
    (home / "box.toml").write_text(text + service_table("web"))
    async with running("box", cwd=home) as program:
        await program.wait_for(f"Box {name} is ready")
        yield
        program.process.send_signal(signal.SIGINT)
        assert await program.wait() == 0


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = await run("auth", "init", "auth", "--hosts", "box-a, box-b", cwd=tmp_path)
    assert made.code == 0
    for role, name in (("durable", "mailer"), ("instance", "web")):
        assert (await run("auth", "add", role, name, cwd=tmp_path)).code == 0
    config = tmp_path / "auth" / SERVER_CONFIG
    async with EmbeddedServer(tmp_path / "nats", config=config) as server:
        fleet = Fleet(tmp_path, server)
        async with box(fleet, "box-a", FIRST_PORT), box(fleet, "box-b", FIRST_PORT + 100):
            yield fleet


@pytest.mark.slow
async def test_every_verb_works_with_the_rights_of_its_role_and_the_server_denies_nothing(
    fleet: Fleet,
) -> None:
    for user in ("operator", "gateway"):
        assert "web scaled to 2" in await fleet.run(user, "scale", "web", 2, "--wait")
        assert (await fleet.run(user, "ps")).count("ready") == 2
        assert "endpoint" in (await fleet.run(user, "routes", "web", "--json"))
        assert "█" in await fleet.run(user, "timeline", "web")
    assert "█" in await fleet.run("consumer", "timeline", "web")
    assert (await fleet.run("operator", "hosts")).count("live") == 2
    assert "web" in await fleet.run("operator", "services")
    assert "box-" in await fleet.run("operator", "history", "web")
    users = json.loads((fleet.directory / "auth" / "users.json").read_text())["users"]
    keys = {user["name"]: user["key"] for user in users}
    told = json.loads(await fleet.run("operator", "history", "web", "--json"))
    named = {entry["requester"] for entry in told["entries"] if entry["replicas"] is not None}
    assert named <= {keys["operator"], keys["gateway"]}
    assert keys["operator"] in named
    assert keys["operator"][:10] in await fleet.run("operator", "history", "web")
    assert "WOULD TAKE" in await fleet.run("operator", "plan", "web", 4)
    assert "cordoned" in await fleet.run("operator", "cordon", "box-b")
    told = json.loads(await fleet.run("operator", "hosts", "--json"))
    assert [host["order"]["requester"] for host in told["hosts"] if host["order"]] == [
        keys["operator"]
    ]
    assert "again" in await fleet.run("operator", "uncordon", "box-b")
    assert "is empty" in await fleet.run("operator", "drain", "box-b", "--timeout", 60)
    await fleet.run("operator", "uncordon", "box-b")
    await fleet.run("operator", "rebalance", "--timeout", 60)
    stored = r"creating → booting"
    for user, more in (("consumer", []), ("gateway", ["web"]), ("mailer", ["--durable", "mailer"])):
        flags = [*more, "--since", "all", *fleet.flags(user)]
        async with running("events", *flags, cwd=fleet.directory) as events:
            await events.wait_for(stored)
            events.process.send_signal(signal.SIGINT)
            await events.wait()
    assert fleet.violations() == []


@pytest.mark.slow
async def test_a_relay_delivers_and_keeps_dead_letters_with_its_rights_alone(fleet: Fleet) -> None:
    await fleet.run("operator", "scale", "web", 1, "--wait")

    def reject_one(request: Request) -> int:
        return REJECTED if request.id.endswith(".1") else 200

    async with receiving(reject_one) as receiver:
        flags = ["--to", receiver.url, "--since", "all", *fleet.flags("relay")]
        async with running("relay", *flags, cwd=fleet.directory) as relay:
            await eventually(lambda: receiver.taken)
            relay.process.send_signal(signal.SIGINT)
            assert await relay.wait() == 0
            await relay.wait_for(r"1 dead letter")
    assert fleet.violations() == []


@pytest.mark.slow
async def test_an_instance_registers_with_its_rights_alone(fleet: Fleet) -> None:
    sleeper = [sys.executable, "-c", "import signal; signal.pause()"]
    async with receiving() as service:
        endpoint = f"127.0.0.1:{service.port}"
        flags = ["--service", "web", "--endpoint", endpoint, *fleet.flags("web")]
        async with running("register", *flags, "--", *sleeper, cwd=fleet.directory) as instance:
            await instance.wait_for(f"is registered at {endpoint}")
            assert endpoint in await fleet.run("gateway", "routes", "web")
            instance.process.send_signal(signal.SIGTERM)
            await instance.wait()
            await instance.wait_for("is withdrawn")
    assert fleet.violations() == []


@pytest.mark.slow
async def test_the_doctor_finds_each_user_fit_for_its_role_and_for_no_other(fleet: Fleet) -> None:
    await fleet.run("operator", "scale", "web", 1, "--wait")
    for user, role in (
        *((role, [role]) for role in ("gateway", "consumer", "operator")),
        ("mailer", ["durable", "--name", "mailer"]),
        ("relay", ["relay", "--name", "relay"]),
        ("web", ["instance", "--name", "web"]),
    ):
        told = await fleet.run(user, "doctor", "--role", *role)
        assert re.search(r"^ok +permissions .*, and no more$", told, re.MULTILINE), told
    told = await fleet.run("box-a", "doctor", "-c", fleet.directory / "box-a" / "box.toml")
    assert re.search(r"^ok +permissions .*, and no more$", told, re.MULTILINE), told
    told = await fleet.run("operator", "doctor", "--role", "gateway")
    assert re.search(
        r"^warn permissions .*beyond that this user may publish box.hosts, ", told, re.MULTILINE
    )
    assert re.search(r'publish: \{ deny: \["box.hosts", ', told)
    told = await fleet.run("gateway", "doctor", "--role", "operator", code=1)
    assert re.search(r"^fail permissions .* may not publish box.hosts, ", told, re.MULTILINE)
    told = await fleet.run("mailer", "doctor", "--role", "durable", "--name", "other", code=1)
    assert "may not publish $JS.fleet.API.CONSUMER.INFO.BOX_EVENTS.other" in told


# ── the directory ────────────────────────────────────────────────────────────────────────


async def test_users_are_listed_added_rotated_and_revoked(tmp_path: Path) -> None:
    async def auth(*arguments: str, code: int = 0) -> Result:
        done = await run("auth", *arguments, cwd=tmp_path)
        assert done.code == code, done.err
        return done

    assert "nats-server -c" in (await auth("init", "auth", "--hosts", "box-a")).out
    before = {user["name"]: user for user in (await auth("list", "--json")).json["users"]}
    assert [*before] == ["box-a", "gateway", "consumer", "relay", "operator"]
    assert before["box-a"]["context"] == str(tmp_path / "auth" / "box-a.json")
    assert "Reload the server" in (await auth("add", "durable", "mailer")).out
    assert "Reload the server" in (await auth("rotate", "gateway")).out
    after = {user["name"]: user for user in (await auth("list", "--json")).json["users"]}
    assert after["gateway"]["key"] != before["gateway"]["key"]
    assert after["mailer"]["role"] == "durable"
    assert "Reload the server" in (await auth("revoke", "mailer")).out
    assert not [*(tmp_path / "auth").glob("mailer.*")]
    assert "mailer" not in (tmp_path / "auth" / "accounts.conf").read_text()


async def test_no_output_and_no_file_but_the_seed_s_own_holds_a_secret(tmp_path: Path) -> None:
    made = await run("auth", "init", "auth", "--json", cwd=tmp_path)
    seeds = [file.read_text().strip() for file in (tmp_path / "auth").glob("*.nk")]
    assert len(seeds) == 4
    others = [file.read_text() for file in (tmp_path / "auth").iterdir() if file.suffix != ".nk"]
    for seed in seeds:
        assert seed not in made.out + made.err + "".join(others)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["init", "auth"], "has users already: use `box-bridge auth add"),
        (["add", "relay", "gateway"], "gateway: is a gateway already"),
        (["add", "durable", "A.b"], "is not a name"),
        (["add", "instance", "web.x.y"], "is not a name"),
        (["rotate", "nobody"], "nobody: is not a user; the users are: gateway, "),
        (["revoke", "nobody"], "nobody: is not a user"),
        (["list", "--dir", "elsewhere"], "has no users: make it with `box-bridge auth init`"),
        (["add", "gateway", "x", "--dir", "elsewhere"], "does not exist: make it with"),
        (["init", "auth2", "--hosts", "Box A"], "is not a name"),
        (["init", "auth2", "--hosts", "box-a,gateway"], "gateway: cannot be a host's name"),
        (["init", "."], "is not empty: name a new directory"),
        (["init", "auth3", "--prefix", "a.b"], "is not a name"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_a_sentence(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    assert (await run("auth", "init", "auth", cwd=tmp_path)).code == 0
    before = (tmp_path / "auth" / "users.json").read_text()
    refused = await run("auth", *arguments, cwd=tmp_path)
    assert (refused.code, refused.out) == (2, "")
    assert problem in refused.err
    assert (tmp_path / "auth" / "users.json").read_text() == before


async def test_a_missing_extra_is_reported_with_what_to_install(tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"nkeys": None}):
        refused = await run("auth", "init", "auth", cwd=tmp_path)
    assert refused.code == 2
    assert "pip install 'box-bridge[nkeys]'" in refused.err


async def test_a_user_whose_file_moves_with_its_context_still_connects(tmp_path: Path) -> None:
    await run("auth", "init", "auth", cwd=tmp_path)
    context = json.loads((tmp_path / "auth" / "operator.json").read_text())
    assert context["nkey"] == "operator.nk"
    config = tmp_path / "auth" / SERVER_CONFIG
    async with EmbeddedServer(tmp_path / "nats", config=config) as server:
        other = tmp_path / "other"
        other.mkdir()
        for name in ("operator.json", "operator.nk"):
            (tmp_path / "auth" / name).rename(other / name)
        flags = ["--role", "operator", "--context", str(other / "operator.json"), "-s", server.url]
        told = await run("doctor", *flags, cwd=tmp_path)
        assert re.search(r"^ok +nats ", told.out, re.MULTILINE), told.out
