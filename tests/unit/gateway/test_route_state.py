"""Who takes traffic, by what the bus says: in any order, however often, and as time passes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.gateway.routes.index import Delete, Put, Route
from bridge.gateway.routes.instance_state import RouteCandidate
from bridge.gateway.routes.state import FLAP_PAUSE, MEMORY, RouteState
from bridge.protocol import InstanceEvent, InstanceHealth, InstanceState

S = InstanceState
KEY = ("web", "web-1")
AT = datetime(2026, 1, 1, tzinfo=UTC)
BAD, GOOD = InstanceHealth(healthy=False), InstanceHealth()


def registration(name: str = "web-1", port: int = 80, host: str = "", **metadata: str) -> Route:
    return Route(
        service="web",
        instance_id=name,
        endpoint=f"127.0.0.1:{port}",
        state=S.READY,
        host=host,
        metadata={key.replace("_", "-"): value for key, value in metadata.items()},
        started_at=AT,
    )


def event(to: InstanceState, message: str = "", *, since: InstanceState | None = None) -> Any:
    return InstanceEvent.transition("web-1", "web", since or to, to, at=AT).with_message(message)


def book(count: int = 1, **settings: Any) -> RouteState:
    """Registrations ``web-1`` to ``web-<count>``, heard at 0 with times from 1 on."""
    made = RouteState(30, **settings)
    for number in range(1, count + 1):
        made.register(registration(f"web-{number}"), number, 0)
    made.take_changes()
    return made


def names(made: RouteState) -> list[str]:
    return sorted(route.instance_id for route in made.routes)


def passed(made: RouteState, start: float, end: float, *, live: bool = True) -> list[str]:
    """Let time pass, a tick a second; returns who was held over."""
    kept: list[str] = []
    for second in range(int(start) + 1, int(end) + 1):
        kept += [instance_id for _, instance_id in made.tick(second, live=live)]
    return kept


# ── any order ────────────────────────────────────────────────────────────────────────────

_NAMES = st.sampled_from(["web-1", "web-2"])
_REGISTERED = st.builds(
    lambda name, port, healthy, time, host, seq: ("register", name, port, healthy, time, host, seq),
    _NAMES,
    st.integers(1, 2),
    st.sampled_from([True, True, False]),
    st.integers(1, 3),
    st.sampled_from(["", "box-a"]),
    st.integers(0, 4),
)
_STEPPED = st.builds(
    lambda name, seq, state: ("event", name, seq, state, ""),
    _NAMES,
    st.integers(0, 4),
    st.sampled_from([S.BOOTING, S.READY, S.BUSY]),
)
_NOTED = st.builds(
    lambda name, seq, note: ("event", name, seq, S.READY, note),
    _NAMES,
    st.integers(1, 4),
    st.sampled_from(["healthy: it answers", "unhealthy: it does not", "pulled 3 %"]),
)
_LEFT = st.sampled_from([("deregister", "web-2"), ("event", "web-2", 3, S.DRAINING, "")])
_TOLD = st.one_of(_REGISTERED, _REGISTERED, _STEPPED, _NOTED, _LEFT)


def tell(made: RouteState, told: tuple[Any, ...]) -> None:
    kind, name, *rest = told
    if kind == "register":
        port, healthy, time, host, seq = rest
        metadata = {} if healthy else {"box_healthy": "false"}
        made.register(registration(name, port, host, **metadata), time, 1.0, seq=seq)
    elif kind == "deregister":
        made.withdraw(("web", name), "deregistered", 1.0)
    elif kind == "report":
        made.report(("web", name), InstanceHealth(healthy=rest[0]), 1.0)
    else:
        seq, state, note = rest
        since = state if note else S.READY
        made.event(
            InstanceEvent.transition(name, "web", since, state, at=AT).with_message(note), seq, 1.0
        )


@given(
    st.lists(_TOLD, max_size=12),
    st.dictionaries(_NAMES, st.booleans()),
    st.data(),
)
def test_any_order_of_any_messages_with_repeats_settles_to_the_same_table(
    told: list[tuple[Any, ...]], reports: dict[str, bool], data: st.DataObject
) -> None:
    told = [*told, *(("report", name, healthy) for name, healthy in reports.items())]
    other_order = data.draw(st.permutations(told))
    repeats = data.draw(st.lists(st.sampled_from(told), max_size=8) if told else st.just([]))
    tables = []
    for messages in (told, [*other_order, *repeats]):
        made = RouteState(1000)
        for message in messages:
            tell(made, message)
        made.tick(2.0 + FLAP_PAUSE, live=True)  # in some orders health changed more often
        tables.append({route.key: route for route in made.routes})
    assert tables[0] == tables[1]


_SNAPSHOT = st.dictionaries(
    _NAMES,
    st.tuples(
        st.integers(1, 2),
        st.sampled_from([True, True, False]),
        st.integers(-40, 10),
        st.booleans(),
        st.integers(0, 4),
    ),
)


@given(st.lists(_TOLD, max_size=6), _SNAPSHOT, st.integers(1, 3))
def test_a_snapshot_is_taken_over_as_if_each_had_registered(
    told: list[tuple[Any, ...]], snapshot: dict[str, tuple[int, bool, int, bool, int]], limit: int
) -> None:
    taken_at, now, seconds = 10**12, 50.0, 10**9
    books = RouteState(30, limit=limit), RouteState(30, limit=limit)
    for message in told:
        for made in books:
            tell(made, message)
    taken: dict[tuple[str, str], RouteCandidate] = {}
    refused = 0
    for name, (port, healthy, at, hosted, seq) in snapshot.items():
        metadata = {} if healthy else {"box_healthy": "false"}
        route = registration(name, port, "box-a" if hosted else "", **metadata)
        time_ns = taken_at + at * seconds
        taken[route.key] = RouteCandidate(route.key, route=route, time_ns=time_ns, served_at=seq)
        if at >= -30:
            age = max(0.0, float(-at))
            refused += not books[0].register(route, time_ns, now, age=age, seq=seq)
    assert books[1].take_over(taken, taken_at, now) == refused
    for name in ("_leased", "newest_ns", "seq"):
        assert getattr(books[0], name) == getattr(books[1], name), name
    assert books[0]._names._by_id == books[1]._names._by_id
    news = [[replace(each, seq=0) for each in made.changes] for made in books]
    assert sorted(news[0], key=repr) == sorted(news[1], key=repr), "in whatever order"
    assert books[0]._leases._deadlines == books[1]._leases._deadlines
    tables = [{route.key: route for route in made.routes} for made in books]
    assert tables[0] == tables[1]


@given(st.lists(_TOLD, max_size=30))
def test_the_changes_lead_to_the_table_and_are_numbered_without_a_gap(
    told: list[tuple[Any, ...]],
) -> None:
    made = RouteState(1000)
    copy: dict[tuple[str, str], Route] = {}
    last = 0
    for message in told:
        tell(made, message)
        for change in made.take_changes():
            assert change.seq == last + 1
            last = change.seq
            if isinstance(change, Put):
                assert copy.get(change.route.key) != change.route
                copy[change.route.key] = change.route
            else:
                assert isinstance(change, Delete)
                del copy[change.service, change.instance_id]
    assert copy == {route.key: route for route in made.routes}
    assert last == made.seq
    assert len(made.routes) == len(copy) == made.routes.count("web")
    assert {route.key: route for route in made.routes.of("web")} == copy


# ── who takes traffic ────────────────────────────────────────────────────────────────────


def test_a_registration_alone_counts_as_ready() -> None:
    made = book()
    [route] = made.routes.of("web")
    assert (route.endpoint, route.state, route.key) == ("127.0.0.1:80", S.READY, KEY)


@pytest.mark.parametrize("state", [S.READY, S.BUSY])
def test_ready_and_busy_take_traffic(state: InstanceState) -> None:
    made = book()
    made.event(event(state, since=S.BOOTING), 2, 1)
    assert [route.state for route in made.routes] == [state]


@pytest.mark.parametrize("state", [S.CREATING, S.BOOTING])
def test_an_instance_that_registers_before_it_is_ready_has_no_route_yet(
    state: InstanceState,
) -> None:
    made = book()
    made.event(event(state), 1, 1)
    assert names(made) == []
    made.event(event(S.READY, since=S.BOOTING), 2, 1)
    assert names(made) == ["web-1"]
    made.event(event(state), 1, 1)  # comes again
    assert names(made) == ["web-1"]


@pytest.mark.parametrize("last", [S.CREATING, S.BOOTING])
def test_a_registration_that_its_box_sent_after_an_event_replaces_that_event(
    last: InstanceState,
) -> None:
    made = RouteState(30)
    made.event(event(last), 2, 0)
    made.register(registration(host="box-a"), 1, 1)
    assert names(made) == [], "it may have registered itself before it was ready"
    made.register(registration(host="box-a"), 2, 2, seq=3)
    assert [route.state for route in made.routes] == [S.READY]
    made.event(event(last), 2, 3)  # the stream takes events again, the oldest first
    assert names(made) == ["web-1"]
    made.event(event(S.BUSY, since=S.READY), 4, 4)
    assert [route.state for route in made.routes] == [S.BUSY]


def test_a_note_on_its_health_is_replaced_by_a_newer_registration() -> None:
    made = book()
    made.event(event(S.READY, "unhealthy: it does not answer"), 4, 1)
    made.register(registration(), 2, 2, seq=3)
    assert names(made) == []
    made.register(registration(), 3, 3, seq=5)
    assert names(made) == ["web-1"]


def test_an_instance_that_its_host_reports_has_become_ready() -> None:
    made = RouteState(30)
    made.event(event(S.BOOTING, since=S.CREATING), 2, 0)
    made.register(registration(), 1, 1)
    made.sample("box-a", {"web-2": InstanceHealth()}, 2)
    assert names(made) == []
    made.sample("box-a", {"web-1": InstanceHealth()}, 3)
    assert names(made) == ["web-1"]


@pytest.mark.parametrize("state", [S.DRAINING, S.STOPPING, S.STOPPED, S.FAILED])
@pytest.mark.parametrize("seq", [0, 1, 7])
def test_an_instance_that_leaves_never_returns_whatever_its_box_seq(
    state: InstanceState, seq: int
) -> None:
    made = book()
    made.event(event(S.READY, since=S.BOOTING), 5, 1)
    assert made.event(event(state, "scaled down", since=S.READY), seq, 1)
    assert names(made) == []
    [*_, last] = made.take_changes()
    assert isinstance(last, Delete)
    assert last.reason == f"it is {state}: scaled down"
    made.event(event(S.READY, since=S.BOOTING), 9, 1)
    made.register(registration(), 99, 1)
    assert names(made) == []


def test_an_event_without_a_number_that_withdraws_nothing_is_refused() -> None:
    made = book()
    assert not made.event(event(S.BOOTING), 0, 1)
    assert names(made) == ["web-1"]


def test_the_id_of_one_service_is_not_that_of_another() -> None:
    made = book()
    made.withdraw(("api", "web-1"), "deregistered", 1)
    assert names(made) == ["web-1"]


# ── health ───────────────────────────────────────────────────────────────────────────────


def test_each_source_that_reports_it_unhealthy_removes_the_route() -> None:
    made = book()
    made.register(registration(box_healthy="false"), 2, 1)
    assert names(made) == []
    made.register(registration(), 3, 1)
    assert names(made) == ["web-1"]
    made.event(event(S.READY, "unhealthy: it does not answer"), 3, 1)
    assert names(made) == []
    made.event(event(S.BUSY, since=S.READY), 4, 1)  # says nothing of its health
    assert names(made) == []
    made.event(event(S.BUSY, "healthy: it answers"), 5, 1)
    assert names(made) == ["web-1"]
    made.event(event(S.READY, "unhealthy: it does not answer"), 3, 1)  # comes again
    assert names(made) == ["web-1"]


def test_an_instances_own_report_overrides_its_hosts_samples() -> None:
    made = book()
    made.sample("box-a", {"web-1": BAD}, 1)
    assert names(made) == []
    made.report(KEY, GOOD, 2)
    assert names(made) == ["web-1"]
    made.sample("box-a", {"web-1": GOOD}, 3)
    made.report(KEY, BAD, 3)
    assert names(made) == []


def test_a_report_counts_for_as_long_as_a_lease() -> None:
    made = book()
    made.report(KEY, BAD, 1)
    made.register(registration(), 2, 20)
    passed(made, 1, 30)
    assert names(made) == []
    passed(made, 30, 31)
    assert names(made) == ["web-1"]
    made.sample("box-a", {"web-1": BAD}, 32)
    assert names(made) == []
    made.register(registration(), 3, 45)
    passed(made, 31, 62)
    assert names(made) == ["web-1"]


def test_only_its_own_host_can_sample_an_instance() -> None:
    made = RouteState(30)
    made.register(registration(host="box-a"), 1, 0)
    made.sample("box-b", {"web-1": BAD}, 1)
    assert names(made) == ["web-1"]
    made.sample("box-a", {"web-1": BAD, "unknown": BAD}, 1)
    assert names(made) == []
    made.sample("box-a", {"web-1": GOOD}, 2)
    assert names(made) == ["web-1"]


def flap(made: RouteState, times: list[float]) -> None:
    for number, at in enumerate(times):
        made.report(KEY, GOOD if number % 2 else BAD, at)


def test_five_changes_of_health_in_a_minute_keep_it_out_for_a_minute() -> None:
    made = RouteState(1000)
    made.register(registration(), 1, 0)
    flap(made, [0, 15, 30, 45])
    assert names(made) == ["web-1"]
    flap(made, [60, 61])  # unhealthy the fifth time, and then well again
    assert names(made) == []
    made.tick(120, live=True)
    assert names(made) == []
    made.tick(121, live=True)  # a minute after the last change
    assert names(made) == ["web-1"]


def test_five_changes_in_more_than_a_minute_do_not() -> None:
    made = RouteState(1000)
    made.register(registration(), 1, 0)
    flap(made, [0, 16, 32, 48, 64, 80])
    assert names(made) == ["web-1"]


# ── leases ───────────────────────────────────────────────────────────────────────────────


def test_a_lease_that_is_not_renewed_withdraws_and_a_renewal_brings_it_back() -> None:
    made = book(3)
    for number in (2, 3):
        made.register(registration(f"web-{number}"), 10 + number, 20)
    passed(made, 0, 29)
    assert names(made) == ["web-1", "web-2", "web-3"]
    assert passed(made, 29, 30) == []
    assert names(made) == ["web-2", "web-3"]
    made.register(registration(), 1, 31)  # an old message that comes again renews nothing
    assert names(made) == ["web-2", "web-3"]
    made.register(registration(), 20, 32)
    assert names(made) == ["web-1", "web-2", "web-3"]


def test_a_renewal_with_the_same_content_changes_nothing() -> None:
    made = book()
    made.register(registration(), 2, 10)
    assert made.take_changes() == []


def test_what_is_over_of_a_lease_is_over() -> None:
    made = RouteState(30)
    made.register(registration(), 1, 0, age=25.0)
    passed(made, 0, 5)
    assert names(made) == []


def test_no_lease_runs_while_cut_off_nor_for_one_lease_after() -> None:
    made = book()
    assert passed(made, 0, 300, live=False) == []
    made.rearm(300)
    passed(made, 300, 329)
    assert names(made) == ["web-1"]
    passed(made, 329, 330)
    assert names(made) == []


def test_half_of_all_leases_at_once_get_one_more_lease_and_are_reported() -> None:
    made = book(6)
    for number in (1, 2, 3):
        made.register(registration(f"web-{number}"), 10 + number, 25)
    assert sorted(passed(made, 0, 30)) == ["web-4", "web-5", "web-6"]
    assert made.held_over == {("web", f"web-{number}") for number in (4, 5, 6)}
    assert len(made.routes) == 6
    made.register(registration("web-4"), 20, 31)
    assert ("web", "web-4") not in made.held_over
    for number in (1, 2, 3):
        made.register(registration(f"web-{number}"), 20 + number, 50)
    assert passed(made, 30, 60) == []
    assert names(made) == ["web-1", "web-2", "web-3", "web-4"]
    assert not made.held_over


def test_those_whose_renewals_are_spread_run_out_at_once_too() -> None:
    made = RouteState(30)
    for number in range(1, 5):  # all of one host, which dies at 9
        made.register(registration(f"web-{number}"), number, 2 * number)
    assert sorted(passed(made, 0, 38)) == [f"web-{number}" for number in range(1, 5)]
    passed(made, 38, 61)
    assert len(made.routes) == 4
    passed(made, 61, 68)
    assert names(made) == []


@pytest.mark.parametrize(("total", "silent"), [(2, 2), (7, 3)])
def test_fewer_than_half_or_than_three_run_out_as_ever(total: int, silent: int) -> None:
    made = book(total)
    for number in range(silent + 1, total + 1):
        made.register(registration(f"web-{number}"), 10 + number, 25)
    assert passed(made, 0, 30) == []
    assert len(made.routes) == total - silent


# ── bounds ───────────────────────────────────────────────────────────────────────────────


def test_what_has_gone_is_remembered_as_long_as_anybody_insists_and_ten_minutes_more() -> None:
    made = book()
    made.withdraw(KEY, "deregistered", 1)
    for minute in range(1, 30):
        made.register(registration(), minute * 100, minute * 60)
        made.tick(minute * 60, live=True)
        assert names(made) == []
    made.tick(29 * 60 + MEMORY, live=True)
    made.register(registration(), 10_000, 29 * 60 + MEMORY)
    assert names(made) == ["web-1"]  # nobody can tell any more


def test_no_more_are_held_nor_remembered_than_the_limit() -> None:
    made = book(3, limit=3)
    assert not made.register(registration("web-4"), 9, 1)
    assert made.register(registration("web-1"), 9, 1)  # who is there is renewed
    for number in range(5, 100):
        made.withdraw(("web", f"web-{number}"), "deregistered", 1)
    assert len(made._rest) == 3
    assert len(made._names._by_id) == 6
    assert names(made) == ["web-1", "web-2", "web-3"]


def test_a_clock_of_the_server_that_went_back_is_followed() -> None:
    made = RouteState(30)
    made.register(registration(port=80), 10**18, 0)
    made.forget_times()
    made.register(registration(port=81), 10**17, 1)
    assert [route.endpoint for route in made.routes] == ["127.0.0.1:81"]
    assert made.newest_ns == 10**17


# ── bounds for a service and a registrant ────────────────────────────────────────────────


LIMIT = 100


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.gateway.routes.quota.REGISTRANT_LIMIT", LIMIT)


def addressed(number: int, service: str = "web", host: str = "") -> Route:
    made = registration(f"{service}-x{number}", 1 + number % 60_000, host)
    return replace(made, service=service, endpoint=f"6.6.6.6:{1 + number % 60_000}")


@pytest.mark.usefixtures("few")
def test_one_registrant_takes_neither_the_routes_nor_the_places_of_others() -> None:
    made = book(4)
    taken = [made.register(addressed(number), 10 + number, 0) for number in range(1000)]
    assert sum(taken) == LIMIT
    assert {"web-1", "web-4"} <= set(names(made))
    assert made.register(registration("web-9", 1, "box-b"), 5000, 0)
    assert made.register(addressed(1, "api"), 5001, 0)
    assert made.register(addressed(0), 5002, 0), "a renewal needs no place"


def test_the_routes_of_one_service_leave_half_of_the_places_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.gateway.routes.quota.SERVICE_LIMIT", 50)
    made = RouteState(30)
    taken = [made.register(addressed(n, host=f"box-{n}"), 1 + n, 0) for n in range(60)]
    assert sum(taken) == 50
    assert made.register(addressed(0, "api"), 100, 0)


@pytest.mark.usefixtures("few")
def test_a_registrant_gets_a_place_again_when_one_of_its_instances_has_left() -> None:
    made = RouteState(30)
    for number in range(LIMIT):
        assert made.register(addressed(number), 1 + number, 0)
    assert not made.register(addressed(500), 500, 0)
    made.withdraw(addressed(3).key, "it left", 1)
    assert made.register(addressed(501), 501, 1)
    assert not made.register(addressed(502), 502, 1)
    made.register(addressed(4, host="box-b"), 503, 1)  # another registrant has it now
    assert made.register(addressed(502), 504, 1)
    passed(made, 1, 200)
    assert names(made) == []
    assert made.register(addressed(600), 600, 201)


@pytest.mark.usefixtures("few")
def test_a_snapshot_with_too_many_registrations_of_one_registrant_keeps_those_of_others() -> None:
    made = book(2)
    flood = [addressed(number) for number in range(3 * LIMIT)]
    others = [addressed(number, host="box-b") for number in range(5000, 5010)]
    snapshot = {
        route.key: RouteCandidate(route.key, route=route, time_ns=10 + number)
        for number, route in enumerate([*flood, *others])
    }
    refused = made.take_over(snapshot, 1000, 1)
    assert refused == 2 * LIMIT
    assert {*(route.instance_id for route in others), "web-1", "web-2"} <= set(names(made))
    assert len(made.routes) == 2 + LIMIT + 10
