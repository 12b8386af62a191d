"""What a scale request means: the wire contract's rules, one by one and all together."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler.admission import MAX_REQUEST_ID, Admission, decide
from bridge.box.scheduler.instance_order import idlest
from bridge.box.scheduler.placement import run_blocker
from bridge.box.scheduler.planner import MAX_EXCLUSIONS, with_avoidance
from bridge.box.scheduler.rebalance import MAX_MOVES
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import RECEIPTS, REQUESTS, HostOrder, Offer, Rollout, ServiceRecord
from bridge.protocol import InstanceState, ScaleConfig, encode
from bridge.reply_codes import ReplyCode
from tests.unit.fleets import AT, SERVICES, admission_request, fleet, fleets, host, slot

S = InstanceState


def after(state: FleetState, verdict: Admission, service: str = "web") -> FleetState:
    """The fleet once the verdict is stored."""
    if verdict.record is None:
        return state
    return replace(state, services={**state.services, service: verdict.record})


# ── targets and capacity ─────────────────────────────────────────────────────────────────


def test_a_request_is_desired_state_and_takes_the_lowest_free_slots() -> None:
    verdict = decide(admission_request(replicas=3, request_id="r"), fleet())
    assert verdict.record is not None
    assert (verdict.record.target, verdict.record.slots) == (3, [0, 1, 2])
    response = verdict.response
    assert (response.accepted, response.target_replicas, response.error) == (True, 3, None)
    assert (response.current_replicas, response.instances, response.request_id) == (0, [], "r")


@pytest.mark.parametrize(("seconds", "taken"), [(1, True), (0, False), (-1, False)])
def test_a_request_that_expired_before_its_turn_has_no_effect(seconds: int, taken: bool) -> None:
    question = replace(admission_request(replicas=3), expires_at=AT + timedelta(seconds=seconds))
    verdict = decide(question, fleet())
    assert (verdict.record is not None, verdict.response.accepted) == (taken, taken)
    if not taken:
        assert verdict.code == ReplyCode.EXPIRED
        assert "expired at" in (verdict.response.error or "")
        assert "box-a" in (verdict.response.error or "")


def test_slots_still_claimed_or_unreadable_are_not_taken_again() -> None:
    state = fleet(slots={"web": {0: slot("web", 0, S.DRAINING)}}, unreadable={"web": {2}})
    verdict = decide(admission_request(replicas=2), state)
    assert verdict.record is not None
    assert verdict.record.slots == [1, 3]


def test_the_count_before_a_scale_to_0_is_remembered_until_the_next_one_above_0() -> None:
    state = fleet()
    for replicas, remembered in ((3, 0), (0, 3), (0, 3), (2, 0), (0, 2)):
        verdict = decide(admission_request(replicas=replicas, request_id=f"r{replicas}"), state)
        verdict = (
            decide(admission_request(replicas=replicas), state)
            if verdict.record is None
            else verdict
        )
        state = after(state, verdict)
        assert state.services["web"].before_stop == remembered


def test_a_request_beyond_the_room_is_capped_and_sets_the_lower_target() -> None:
    state = fleet(
        hosts={"box-a": host(room=6), "box-b": host("web", room=4)},
        services={"api": ServiceRecord(target=3, slots=[0, 1, 2])},
    )
    verdict = decide(admission_request(replicas=50), state)
    assert verdict.record is not None
    assert verdict.record.target == 7
    assert not verdict.response.accepted
    assert verdict.response.target_replicas == 7
    assert verdict.code == ReplyCode.CAPPED
    assert verdict.response.error == (
        "Capped to 7 instances (max 10 total, 3 used by other services)"
    )


def test_services_that_could_not_use_the_hosts_do_not_count() -> None:
    state = fleet(
        hosts={"box-a": host("web", room=5), "box-b": host("api", room=5)},
        services={"api": ServiceRecord(target=5, slots=[0, 1, 2, 3, 4])},
    )
    assert decide(admission_request(replicas=5), state).response.accepted


def test_services_without_the_labels_for_the_hosts_do_not_count() -> None:
    needs = {"web": "a", "api": "b"}
    state = fleet(
        hosts={f"box-{zone}": host(room=4, zone=zone, needs=needs) for zone in "ab"},
        services={
            "web": ServiceRecord(target=4, slots=[0, 1, 2, 3]),
            "jobs": ServiceRecord(target=1, slots=[0]),
        },
    )
    capped = decide(admission_request("api", 4), state).response
    assert capped.target_replicas == 3
    assert capped.error == "Capped to 3 instances (max 4 total, 1 used by other services)"


def test_a_lost_host_never_lowers_a_granted_target() -> None:
    state = fleet(
        hosts={"box-a": host(room=2)},
        services={"web": ServiceRecord(target=6, slots=[0, 1, 2, 3, 4, 5])},
    )
    verdict = decide(admission_request(replicas=9), state)
    assert verdict.response.target_replicas == 6
    assert verdict.record is None  # capped to what it is: nothing to write without an id
    assert decide(admission_request(replicas=4), state).response.target_replicas == 4


def test_closing_hosts_offer_no_room() -> None:
    state = fleet(hosts={"box-a": host(room=3), "box-b": host(room=5, closing=True)})
    assert decide(admission_request(replicas=9), state).response.target_replicas == 3
    alone = fleet(hosts={"box-b": host(closing=True)})
    assert "unknown service" in str(decide(admission_request(), alone).response.error)


def test_a_fixed_host_port_is_refused_for_more_instances_than_hosts() -> None:
    fixed = ScaleConfig(port_map=["8080:80"])
    state = fleet(services={"web": ServiceRecord(target=3, slots=[0, 1, 2])})
    refused = decide(admission_request(replicas=3, config=fixed), state)
    assert refused.record is None
    assert refused.code == ReplyCode.UNSUPPORTED_CONFIG
    assert "ask for at most 1 with it" in str(refused.response.error)
    fewer = decide(admission_request(replicas=1, config=fixed), state)
    assert fewer.response.accepted
    # Where the port was fixed before, hosts have been lost: that lowers no granted target.
    before = ServiceRecord(target=3, slots=[0, 1, 2], config=fixed)
    lost = decide(
        admission_request(replicas=3, config=ScaleConfig(env={"A": "1"})),
        fleet(services={"web": before}),
    )
    assert lost.response.accepted
    assert lost.response.target_replicas == 3


@pytest.mark.parametrize("config", [ScaleConfig(port_map=["8080:80"]), ScaleConfig()])
def test_a_fixed_host_port_makes_room_for_one_instance_a_host(config: ScaleConfig) -> None:
    port = 0 if config.port_map else 8080
    hosts = {"box-a": host(fixed_port=port), "box-b": host(fixed_port=port)}
    state = fleet(hosts=hosts, services={"api": ServiceRecord(target=1, slots=[0])})
    verdict = decide(admission_request(replicas=5, config=config), state)
    assert verdict.response.target_replicas == 2
    free = decide(admission_request(replicas=5, config=ScaleConfig(port_map=["0:80"])), state)
    assert free.response.target_replicas == 5


@pytest.mark.parametrize(("draining", "granted"), [(False, 6), (True, 4)])
def test_the_instances_of_a_drained_host_need_room_that_is_granted_to_no_other_service(
    draining: bool, granted: int
) -> None:
    state = fleet(
        hosts={"box-a": host(room=4), "box-b": host(room=4)},
        services={"web": ServiceRecord(target=3, slots=[0, 1, 2])},
        slots={"web": {n: slot("web", n, on="box-b" if n else "box-a") for n in range(3)}},
    )
    ordered = replace(state, orders={"box-b": HostOrder(draining=draining)})
    assert decide(admission_request(replicas=9), ordered).response.target_replicas == granted
    fewer = replace(ordered, hosts={"box-b": host(room=4)})
    assert (
        decide(admission_request(replicas=9), fewer).response.target_replicas == 3
    )  # as it was granted


def test_with_a_fixed_port_a_cordoned_host_counts_for_the_instance_it_has() -> None:
    hosts = {"box-a": host(fixed_port=8080), "box-b": host(fixed_port=8080)}
    cordoned = replace(fleet(hosts=hosts), orders={"box-b": HostOrder()})
    assert decide(admission_request(replicas=2), cordoned).response.target_replicas == 1
    there = replace(cordoned, slots={"web": {0: slot("web", 0, on="box-b")}}, used={"box-b": 1})
    assert decide(admission_request(replicas=2), there).response.accepted


# ── refusals change nothing ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            admission_request("nope"),
            "unknown service 'nope': no live Box lists it; known: api, jobs, web",
        ),
        (admission_request("a.b"), "'a.b' is not a name"),
        (admission_request(">"), "is not a name"),
        (admission_request(""), "is not a name"),
        (admission_request("x" * 64), "is not a name"),
        (admission_request(request_id="x" * 129), "request_id is longer than 128"),
        (admission_request(config=ScaleConfig(image="nginx")), "image 'nginx' cannot be honoured"),
        (admission_request(config=ScaleConfig(vcpus=5)), "vcpus must be 1 to 4"),
        (admission_request(config=ScaleConfig(vcpus=0)), "vcpus must be"),
        (admission_request(config=ScaleConfig(memory_mib=0)), "memory_mib must be"),
        (admission_request(config=ScaleConfig(port_map=["80"])), '"host:guest"'),
        (admission_request(config=ScaleConfig(port_map=["80:99999"])), '"host:guest"'),
        (admission_request(config=ScaleConfig(port_map=["1:1", "2:2"])), "one entry"),
        (admission_request(config=ScaleConfig(env={"A=B": "c"})), "is not a name of letters"),
        (admission_request(config=ScaleConfig(env={"": "c"})), "is not a name of letters"),
        (
            admission_request(config=ScaleConfig(env={"A": "\0"})),
            "cannot be an environment variable",
        ),
        (admission_request(config=ScaleConfig(env={"PORT": "80"})), "PORT is set by the Box"),
        (admission_request(config=ScaleConfig(env={"BOX_SERVICE": "x"})), "set by the Box"),
    ],
)
def test_an_invalid_request_is_refused_with_the_fix_and_changes_nothing(
    request_: Any, said: str
) -> None:
    state = fleet(
        services={"web": ServiceRecord(target=1, slots=[0])}, slots={"web": {0: slot("web", 0)}}
    )
    verdict = decide(request_, state)
    assert verdict.record is None
    assert not verdict.response.accepted
    assert said in str(verdict.response.error)
    if request_.request.service == "web":
        assert (verdict.response.current_replicas, verdict.response.target_replicas) == (1, 1)


def _offering(*names: str, ports: tuple[int, int] = (8000, 8999)) -> FleetState:
    """A fleet whose one host lets requests set these variables and host ports of `web`."""
    offer = Offer(request_env=names, fixed_port=80)
    return fleet(
        hosts={"box-a": replace(host("web"), services={"web": offer}, request_ports=ports)}
    )


NEVER = [
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_x", "BASH_ENV", "ENV", "PYTHONPATH", "PYTHONWARNINGS"),
    *("PATH", "HOME", "IFS", "NATS_URL", "NATS_PASSWORD", "HTTPS_PROXY", "http_proxy", "no_proxy"),
    *("PERL5OPT", "RUBYOPT", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "GIT_SSH"),
    *("BROWSER", "GLIBC_TUNABLES", "CORECLR_PROFILER", "SSL_CERT_FILE"),
]


@pytest.mark.parametrize("name", NEVER)
def test_a_request_never_makes_an_instance_run_other_code_also_if_that_is_listed(name: str) -> None:
    for state in (_offering(name), fleet()):
        verdict = decide(admission_request(config=ScaleConfig(env={name: "x"})), state)
        assert verdict.record is None
        assert verdict.code == ReplyCode.UNSUPPORTED_CONFIG
        assert f"env {name} may never be set by a request" in (verdict.response.error or "")


def test_no_host_runs_a_record_with_a_variable_that_no_request_may_set() -> None:
    config = ScaleConfig(env={"LD_PRELOAD": "x.so"})
    assert run_blocker("web", host("web"), config)


@pytest.mark.parametrize(
    "name", ["BASH_FUNC_ls%%", "spring.ENV", "1A", "A-B", "", "A=B", "A B", "A\n", "É", "٨", "A\0"]
)
def test_a_request_may_set_names_of_ascii_letters_digits_and_underscores_alone(name: str) -> None:
    verdict = decide(admission_request(config=ScaleConfig(env={name: "x"})), _offering(name))
    assert verdict.record is None
    assert verdict.code == ReplyCode.UNSUPPORTED_CONFIG


@pytest.mark.parametrize("name", ["ENVIRONMENT", "APP_ENV", "BUILD_LD_FLAGS", "env", "NODE_ENV"])
def test_a_request_may_set_the_variables_that_its_service_lists(name: str) -> None:
    verdict = decide(admission_request(config=ScaleConfig(env={name: "x"})), _offering(name))
    assert verdict.response.error is None
    other = decide(admission_request(config=ScaleConfig(env={name: "x"})), _offering("OTHER"))
    assert other.code == ReplyCode.UNSUPPORTED_CONFIG
    assert f"env {name} may not be set by a request" in (other.response.error or "")


def test_a_host_of_an_older_version_has_no_list() -> None:
    assert decide(admission_request(config=ScaleConfig(env={"A": "1"})), fleet()).response.accepted


def test_a_service_with_a_variable_that_is_not_listed_any_more_can_be_scaled_down() -> None:
    before = ServiceRecord(version=1, target=2, slots=[0, 1], config=ScaleConfig(env={"OLD": "1"}))
    state = replace(_offering("NEW"), services={"web": before})
    assert decide(admission_request(replicas=3), state).code == ReplyCode.UNSUPPORTED_CONFIG
    assert decide(admission_request(replicas=0), state).response.accepted


@pytest.mark.parametrize("port", ["8000", "8999", "80", "0"])
def test_a_request_may_fix_the_ports_of_the_range_and_the_one_of_its_service(port: str) -> None:
    config = ScaleConfig(port_map=[f"{port}:1"])
    assert decide(admission_request(config=config), _offering()).response.error is None


@pytest.mark.parametrize("port", ["22", "7999", "9000", "65535", "08080", "٨٠٨٠", "-1", " 80"])
def test_a_request_may_fix_no_other_host_port(port: str) -> None:
    verdict = decide(admission_request(config=ScaleConfig(port_map=[f"{port}:1"])), _offering())
    assert verdict.record is None
    assert verdict.code == ReplyCode.UNSUPPORTED_CONFIG


def test_a_variable_that_is_not_unicode_is_refused() -> None:
    verdict = decide(admission_request(config=ScaleConfig(env={"A": "\ud800"})), fleet())
    assert verdict.code == ReplyCode.UNSUPPORTED_CONFIG


def test_a_port_in_the_environment_may_repeat_the_fixed_one() -> None:
    config = ScaleConfig(env={"PORT": "8080"}, port_map=["8080:80"])
    assert decide(admission_request(config=config), fleet()).response.accepted


# ── one request id has one effect ────────────────────────────────────────────────────────


def test_a_repeat_gets_the_first_answer_whatever_was_asked_in_between() -> None:
    state = fleet()
    first = decide(admission_request(replicas=3, request_id="r"), state)
    state = after(state, first)
    state = after(state, decide(admission_request(replicas=1, request_id="other"), state))
    state = replace(state, slots={"web": {0: slot("web", 0)}})
    again = decide(admission_request(replicas=3, request_id="r"), state)
    assert again.record is None
    assert again.response.target_replicas == 3
    assert again.response.current_replicas == first.response.current_replicas
    assert [info.id for info in again.response.instances] == ["web-0-box-a"]


def test_a_capped_request_is_repeated_as_capped() -> None:
    state = fleet(hosts={"box-a": host(room=2)})
    first = decide(admission_request(replicas=9, request_id="r"), state)
    again = decide(admission_request(replicas=9, request_id="r"), after(state, first))
    assert again.code == first.code == ReplyCode.CAPPED
    assert again.response.error == first.response.error
    assert not again.response.accepted


@pytest.mark.parametrize(
    "other",
    [
        admission_request(replicas=4, request_id="r"),
        admission_request(replicas=3, request_id="r", config=ScaleConfig(env={"A": "1"})),
        admission_request(replicas=3, request_id="r", replaces=True),
    ],
)
def test_the_same_id_with_another_body_is_refused(other: Any) -> None:
    state = after(fleet(), decide(admission_request(replicas=3, request_id="r"), fleet()))
    verdict = decide(other, state)
    assert verdict.record is None
    assert verdict.code == ReplyCode.CONFLICT
    assert "was used for another request" in str(verdict.response.error)


def test_the_order_of_a_map_does_not_make_another_body() -> None:
    config = ScaleConfig(env={"A": "1", "B": "2"})
    state = after(fleet(), decide(admission_request(request_id="r", config=config), fleet()))
    turned = ScaleConfig(env={"B": "2", "A": "1"})
    assert decide(admission_request(request_id="r", config=turned), state).response.accepted


def test_the_last_64_receipts_are_kept() -> None:
    state = fleet()
    for number in range(70):
        state = after(state, decide(admission_request(replicas=1, request_id=f"r{number}"), state))
    kept = [receipt.request_id for receipt in state.services["web"].receipts]
    assert kept == [f"r{number}" for number in range(6, 70)]


def test_a_record_of_100_000_slots_and_all_that_may_be_kept_beside_fits_a_message() -> None:
    count, config = 100_000, ScaleConfig(env={"A": "x" * 60 * 1024})
    record = ServiceRecord(target=count, slots=list(range(count)), config=config)
    for number in range(MAX_EXCLUSIONS):
        off = with_avoidance(record, count - number, "h" * 63, AT)
        record = replace(record, avoid=off)
    record = replace(record, moves=record.slots[-MAX_MOVES:])
    state = fleet(hosts={"box-a": host("web", room=count)}, services={"web": record})
    longest = "\x01" * MAX_REQUEST_ID  # six bytes each
    written = decide(admission_request(replicas=2 * count, request_id=longest), state).record
    assert written is not None
    [receipt] = written.receipts
    assert "Capped" in (receipt.error or "")
    record = replace(written, receipts=[receipt] * RECEIPTS, requests=written.requests * REQUESTS)
    assert len(encode(record)) < 1024 * 1024 - 1024


def test_refusals_dry_runs_and_unchanged_targets_without_an_id_write_nothing() -> None:
    state = after(fleet(), decide(admission_request(replicas=2), fleet()))
    assert decide(admission_request(replicas=2), state).record is None
    assert decide(admission_request("nope", request_id="r"), state).record is None
    dry = decide(admission_request(replicas=5, request_id="r", dry_run=True), state)
    assert dry.record is None
    assert (dry.response.accepted, dry.response.target_replicas) == (True, 5)
    assert (
        decide(admission_request(replicas=2, request_id="r"), state).record is not None
    )  # its receipt


# ── who goes ─────────────────────────────────────────────────────────────────────────────


def test_the_idlest_instances_end_first_and_the_youngest_among_equals() -> None:
    claims = {
        0: slot("web", 0, S.BUSY, inflight=9, age=1),
        1: slot("web", 1, S.BUSY, inflight=1, age=1),
        2: slot("web", 2, S.BOOTING),
        3: slot("web", 3, S.CREATING),
        4: slot("web", 4, S.READY, inflight=1),
        5: slot("web", 5, S.READY, age=60),
        6: slot("web", 6, S.READY, age=5),
        7: slot("web", 7, S.FAILED),
    }
    state = fleet(slots={"web": claims})
    order = idlest(state, "web", range(9), 9)
    assert set(order[:2]) == {7, 8}  # no living instance at all
    assert order[2:] == [6, 5, 4, 3, 2, 1, 0]


def test_a_claim_that_cannot_be_read_goes_last() -> None:
    claims = {0: slot("web", 0, S.BUSY, inflight=9), 1: slot("web", 1)}
    state = fleet(slots={"web": claims}, unreadable={"web": {2}})
    assert idlest(state, "web", range(4), 4) == [3, 1, 0, 2]


def test_reported_loads_beat_the_records() -> None:
    claims = {0: slot("web", 0), 1: slot("web", 1, age=9)}
    state = fleet(slots={"web": claims})
    assert idlest(state, "web", [0, 1], 1) == [0]
    load = replace(claims[0].info.health, inflight_requests=3)
    busy = replace(state, loads={claims[0].info.id: load})
    assert idlest(busy, "web", [0, 1], 1) == [1]


def test_this_hosts_own_instances_are_known_ahead_of_their_records() -> None:
    claims = {0: slot("web", 0), 1: slot("web", 1, age=9)}
    own = replace(claims[1].info, state=S.FAILED)
    state = replace(fleet(slots={"web": claims}), own_instances={own.id: own})
    assert idlest(state, "web", [0, 1], 1) == [1]
    response = decide(admission_request(replicas=1), state).response
    assert [info.id for info in response.instances] == ["web-0-box-a"]


def test_the_reply_lists_instances_oldest_first_and_shows_leaving_ones_as_draining() -> None:
    claims = {n: slot("web", n, age=10 - n) for n in range(3)}
    state = fleet(services={"web": ServiceRecord(target=3, slots=[0, 1, 2])}, slots={"web": claims})
    response = decide(admission_request(replicas=1), state).response
    assert response.current_replicas == 3
    assert [(info.id, info.state) for info in response.instances] == [
        ("web-0-box-a", S.READY),
        ("web-1-box-a", S.DRAINING),
        ("web-2-box-a", S.DRAINING),
    ]


def test_ended_instances_are_neither_counted_nor_listed() -> None:
    claims = {0: slot("web", 0, S.FAILED), 1: slot("web", 1, S.STOPPED), 2: slot("web", 2)}
    state = fleet(services={"web": ServiceRecord(target=3, slots=[0, 1, 2])}, slots={"web": claims})
    response = decide(admission_request(replicas=3), state).response
    assert response.current_replicas == 1
    assert [info.id for info in response.instances] == ["web-2-box-a"]


# ── config ───────────────────────────────────────────────────────────────────────────────


def test_null_and_empty_fields_leave_their_override() -> None:
    state = after(
        fleet(), decide(admission_request(config=ScaleConfig(vcpus=2, env={"A": "1"})), fleet())
    )
    state = after(
        state, decide(admission_request(config=ScaleConfig(memory_mib=64, image="")), state)
    )
    assert state.services["web"].config == ScaleConfig(vcpus=2, memory_mib=64, env={"A": "1"})
    replaced = decide(admission_request(config=ScaleConfig(memory_mib=32), replaces=True), state)
    assert replaced.record is not None
    assert replaced.record.config == ScaleConfig(memory_mib=32)


def test_a_config_is_refused_only_when_no_host_can_honour_it() -> None:
    hosts = {"box-a": host(cpus=2, room=3), "box-b": host(cpus=8, room=4)}
    verdict = decide(admission_request(replicas=9, config=ScaleConfig(vcpus=4)), fleet(hosts=hosts))
    assert verdict.response.target_replicas == 4  # box-b alone
    refused = decide(admission_request(config=ScaleConfig(vcpus=9)), fleet(hosts=hosts))
    assert not refused.response.accepted


def test_the_extra_slot_of_a_rollout_stays_until_the_target_changes() -> None:
    record = ServiceRecord(target=2, slots=[0, 1, 2], rollout=Rollout(config="x"))
    state = fleet(services={"web": record})
    same = decide(admission_request(replicas=2, request_id="r"), state).record
    assert same is not None
    assert same.slots == [0, 1, 2]
    more = decide(admission_request(replicas=3), state).record
    assert more is not None
    assert more.slots == [0, 1, 2]
    fewer = decide(admission_request(replicas=1), state).record
    assert fewer is not None
    assert len(fewer.slots) == 1


def test_a_repeated_request_for_a_config_restarts_its_stopped_rollout() -> None:
    config = ScaleConfig(env={"A": "1"})
    record = ServiceRecord(target=1, slots=[0], config=config)
    stopped = Rollout(config=record.config_id, failures=3, stopped="why")
    state = fleet(services={"web": replace(record, rollout=stopped)})
    assert decide(admission_request(replicas=1), state).record is None
    anew = decide(admission_request(replicas=1, config=config), state).record
    assert anew is not None
    assert anew.rollout is None


def test_the_record_itself_remembers_the_last_requests_in_short() -> None:
    state = fleet(hosts={"box-a": host("web", room=3)})
    for number in range(REQUESTS + 2):
        request = replace(
            admission_request(replicas=number % 2, request_id=f"r{number}"), traceparent="00-1"
        )
        record = decide(request, state).record
        assert record is not None
        state = replace(state, services={"web": record})
    capped = decide(admission_request(replicas=9, config=ScaleConfig(env={"A": "1"})), state).record
    assert capped is not None
    first, *_, before, last = capped.requests
    assert len(capped.requests) == REQUESTS
    assert (first.version, first.decision.request_id) == (4, "r3")
    assert (before.before, before.after, before.decision.traceparent) == (0, 1, "")
    assert (last.version, last.before, last.after, last.reconfigured) == (
        capped.version,
        1,
        3,
        True,
    )
    assert (last.decision.replicas, last.decision.at) == (9, AT)
    assert str(last.decision.error).startswith("Capped to 3")
    assert sum(len(encode(request)) for request in capped.requests) < 200 * REQUESTS


# ── all together ─────────────────────────────────────────────────────────────────────────

requests = st.builds(
    admission_request,
    st.sampled_from([*SERVICES, "nope", "a.b"]),
    st.integers(0, 12),
    request_id=st.sampled_from(["", "r1", "r2"]),
    config=st.sampled_from([ScaleConfig(), ScaleConfig(env={"A": "1"}), ScaleConfig(image="i")]),
    replaces=st.booleans(),
    dry_run=st.booleans(),
)


def usable(state: FleetState, service: str) -> set[str]:
    """The live hosts that can run `service`."""
    return {
        name
        for name, host in state.hosts.items()
        if (offer := host.services.get(service)) is not None
        and not host.closing
        and offer.needs.items() <= host.labels.items()
    }


def room_for(state: FleetState, service: str) -> int:
    """What the live hosts that can run `service` can hold."""
    return sum(state.hosts[name].max_instances for name in usable(state, service))


def promised(state: FleetState, service: str) -> int:
    """The targets of `service` and of all that compete with it for hosts."""
    hosts = usable(state, service)
    return sum(
        record.target for name, record in state.services.items() if usable(state, name) & hosts
    )


@given(fleets(), st.lists(requests, max_size=6))
def test_any_run_of_requests_keeps_the_promises(state: FleetState, run: list[Any]) -> None:
    for request in run:
        verdict = decide(request, state)
        service, response = request.request.service, verdict.response
        before = state.services.get(service) or ServiceRecord()
        assert response.request_id == request.request.request_id
        assert response.accepted == (response.error is None) == (verdict.code is None)
        assert response.current_replicas >= 0
        oldest_first = sorted(response.instances, key=lambda info: (info.created_at, info.id))
        assert response.instances == oldest_first
        if verdict.record is None:
            continue
        record = verdict.record
        assert not request.dry_run
        assert record.version == before.version + 1
        assert (
            record.target
            == response.target_replicas
            <= max(before.target, request.request.replicas)
        )
        assert len(set(record.slots)) == len(record.slots) == record.target
        assert record.slots == sorted(record.slots)
        assert record.decision is not None
        assert record.decision.at == AT
        state = after(state, verdict, service)
        if record.target > before.target:
            assert promised(state, service) <= room_for(state, service)


@given(fleets(), requests)
def test_a_decision_is_the_same_each_time(state: FleetState, request: Any) -> None:
    assert decide(request, state) == decide(request, state)


@given(fleets(), st.integers(0, 12))
def test_a_request_with_an_id_has_one_effect(state: FleetState, replicas: int) -> None:
    request = admission_request("web", replicas, request_id="once")
    first = decide(request, state)
    if first.record is None:
        return  # refused: nothing was kept
    again = decide(request, after(state, first))
    assert again.record is None
    answer = (first.response.accepted, first.response.target_replicas, first.response.error)
    assert (
        again.response.accepted,
        again.response.target_replicas,
        again.response.error,
    ) == answer
