"""The table of roles: what covers what, and what no role has."""

from __future__ import annotations

import pytest

from bridge.auth.accounts import Member, accounts, free_account
from bridge.auth.roles import (
    ANY,
    FORBIDDEN,
    PROGRAMS,
    Role,
    allowed,
    check_member,
    covers,
    everything,
    grants,
)
from bridge.auth.server_config import accounts_conf
from bridge.errors import NameRefused
from bridge.subjects import Subjects

SUBJECTS = Subjects()


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("box.events.*", "box.events.web", True),
        ("box.events.*", "box.events.*", True),
        ("box.events.*", "box.events.>", False),
        ("box.events.*", "box.events.web.1", False),
        ("box.>", "box.events.*", True),
        ("box.>", "box", False),
        (">", "$KV.>", True),
        ("box.events.web", "box.events.*", False),
    ],
)
def test_a_pattern_covers_what_it_matches(pattern: str, subject: str, expected: bool) -> None:
    assert covers(pattern, subject) is expected


@pytest.mark.parametrize("role", PROGRAMS)
def test_no_role_may_call_what_is_forbidden_or_write_another_host_s_record(role: Role) -> None:
    granted = grants(role, "box-a", SUBJECTS, inbox="_EDGE.x")
    for subject in (*FORBIDDEN, "$KV.box_hosts.box-b", "box.stats.box-b"):
        assert not allowed(granted.publish, subject)
    assert granted.subscribe[0] == "_EDGE.x.>"


@pytest.mark.parametrize("role", [role for role in PROGRAMS if role not in (Role.BOX, Role.RUNNER)])
def test_only_a_box_writes_records_and_events(role: Role) -> None:
    granted = grants(role, ANY, SUBJECTS, inbox="_EDGE.x")
    assert not [subject for subject in granted.publish if subject.startswith("$KV.")]
    assert not allowed(granted.publish, "box.events.web")


def test_operators_alone_read_logs_and_a_box_has_those_of_its_own_host() -> None:
    for role in PROGRAMS:
        granted = grants(role, "box-a", SUBJECTS, inbox="_X")
        assert allowed(granted.publish, "box.logs.box-a") is (role is Role.OPERATOR)
        assert allowed(granted.subscribe, "box.logs.box-a") is (role is Role.BOX)
        assert not allowed(granted.subscribe, "box.logs.box-b")


def test_every_role_is_in_the_table_of_everything() -> None:
    every = everything(SUBJECTS)
    for role in PROGRAMS:
        assert set(grants(role, ANY, SUBJECTS, inbox="_X").publish) <= set(every.publish)


def test_the_prefix_of_the_fleet_starts_its_subjects() -> None:
    granted = grants(Role.BOX, "box-a", Subjects(prefix="lab"), inbox="_X")
    assert not [subject for subject in granted.publish if "box_" in subject or "BOX_" in subject]
    assert "$KV.lab_hosts.box-a" in granted.publish


def test_a_name_that_could_widen_a_permission_is_refused() -> None:
    for role in Role:
        for name in ("*", ">", "a.*", "", "a b", "a.b.c"):
            with pytest.raises(NameRefused):
                check_member(role, name)
    check_member(Role.INSTANCE, "web.web-1")
    with pytest.raises(NameRefused):
        check_member(Role.DURABLE, "web.web-1")


def test_users_with_names_in_their_permissions_share_no_account() -> None:
    members: list[Member] = []
    for role, name in ((Role.DURABLE, "a"), (Role.RELAY, "b"), (Role.GATEWAY, "c")):
        account = free_account(role, members)
        members.append(Member(role=role, name=name, key=f"U{name}", account=account))
    assert [member.account for member in members] == ["EDGE_1", "EDGE_2", "EDGE_GATEWAY"]
    del members[0]
    assert free_account(Role.INSTANCE, members) == "EDGE_1"
    text = accounts_conf(accounts(SUBJECTS, members))
    assert "EDGE_18 {" in text  # 16 spare ones after the last that is in use
    assert "EDGE_19 {" not in text
