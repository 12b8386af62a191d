"""Services that a request alone makes: who may, where they run, and how they are forgotten."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from bridge.box.scheduler.admission import Admission, decide
from bridge.box.scheduler.on_request import MAX_ON_REQUEST, REMEMBERED, made_from
from bridge.box.scheduler.placement import able_hosts, place
from bridge.box.scheduler.planner import Claim, plan
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Decision, HostIdentity, HostRecord, ServiceRecord, config_id
from bridge.protocol import ScaleConfig
from bridge.reply_codes import ReplyCode
from tests.unit.fleets import AT, admission_request, fleet, host, planned, slot

NGINX = "docker.io/library/nginx:1.27"
ANY_NGINX = "docker.io/library/nginx:*"


def admitting(*images: str, room: int = 10, closing: bool = False) -> HostRecord:
    """A host that lists `jobs` alone, and makes what is asked for by these images."""
    return host("jobs", room=room, closing=closing, runtime="oci", images=images or (ANY_NGINX,))


def two_hosts() -> FleetState:
    return fleet(hosts={"box-a": host("jobs", runtime="oci"), "box-b": admitting(room=4)})


def of_image(image: str = NGINX) -> ScaleConfig:
    return ScaleConfig(image=image)


def after(state: FleetState, verdict: Admission, service: str = "web") -> FleetState:
    assert verdict.record is not None, verdict.response.error
    return replace(state, services={**state.services, service: verdict.record})


def made(target: int = 2, *, image: str = NGINX, days: float = 0) -> ServiceRecord:
    """A service that a request has made, last decided upon so many days ago."""
    return ServiceRecord(
        version=7,
        target=target,
        slots=list(range(target)),
        config=of_image(image),
        on_request=True,
        decision=Decision(at=AT - timedelta(days=days), host="box-a", replicas=target),
    )


# ── who may make one ─────────────────────────────────────────────────────────────────────


def test_an_admitted_image_makes_a_service_that_no_host_lists() -> None:
    verdict = decide(admission_request(replicas=2, config=of_image("nginx:1.27")), two_hosts())
    assert verdict.record is not None
    assert (verdict.record.on_request, verdict.record.slots) == (True, [0, 1])
    assert verdict.record.config.image == NGINX  # so that each engine reads it alike
    assert verdict.response.accepted


@pytest.mark.parametrize(
    ("image", "error"),
    [
        ("redis", "none admits image docker.io/library/redis:latest ([box] allow_images)"),
        (f"registry.evil/{NGINX}", f"none admits image registry.evil/{NGINX}"),
        ("nginx:1@sha256:" + "0" * 64, "none admits image docker.io/library/nginx@sha256:000"),
        ("NGINX", "its name must be lower-case"),
        ("--privileged", "is no reference"),
    ],
)
def test_an_image_that_no_live_host_admits_is_refused_by_name(image: str, error: str) -> None:
    verdict = decide(admission_request(config=of_image(image)), two_hosts())
    assert verdict.record is None
    assert error in (verdict.response.error or "")


def test_by_default_no_image_makes_a_service() -> None:
    state = fleet(hosts={"box-a": host("jobs", runtime="oci")})
    verdict = decide(admission_request(config=of_image()), state)
    assert verdict.record is None
    assert "no live Box lists it, and none admits image" in (verdict.response.error or "")


def test_an_unknown_service_without_an_image_is_unknown() -> None:
    error = decide(admission_request(), two_hosts()).response.error or ""
    assert error == "unknown service 'web': no live Box lists it; known: jobs"


def test_a_name_that_cannot_be_a_subject_token_is_refused() -> None:
    for name in ("a.b", "Web", "*", "web-", ""):
        verdict = decide(admission_request(name, config=of_image()), two_hosts())
        assert verdict.record is None
        assert "is not a name" in (verdict.response.error or "")


def test_a_config_that_an_admitting_host_cannot_honour_is_refused_with_the_reason() -> None:
    config = ScaleConfig(image=NGINX, vcpus=9)
    error = decide(admission_request(config=config), two_hosts()).response.error or ""
    assert error.startswith("config: vcpus must be 1 to 4")


def test_a_service_of_the_boxes_own_configuration_is_never_taken_over() -> None:
    # its only host is away, and a request would like to have its name
    state = replace(two_hosts(), services={"web": ServiceRecord(version=3)})
    verdict = decide(admission_request(config=of_image()), state)
    assert verdict.record is None
    assert "no live Box offers 'web' any more" in (verdict.response.error or "")


def test_a_listed_service_takes_an_image_only_from_its_configuration_or_an_admitting_host() -> None:
    own = host("web", runtime="oci")
    offer = replace(own.services["web"], image="ghcr.io/team/web:1")
    state = fleet(hosts={"box-a": replace(own, services={"web": offer})})
    assert decide(admission_request(config=of_image("ghcr.io/team/web:1")), state).response.accepted
    refused = decide(admission_request(config=of_image("ghcr.io/team/web:2")), state)
    assert refused.record is None
    assert "not admitted by its [box] allow_images" in (refused.response.error or "")
    admits = replace(own, services={"web": offer}, images=("ghcr.io/team/*:*",))
    taken = decide(
        admission_request(config=of_image("ghcr.io/team/web:2")), fleet(hosts={"box-a": admits})
    )
    assert taken.record is not None
    assert not taken.record.on_request


def test_a_fleet_remembers_a_bounded_number_of_them() -> None:
    many = {f"s{number}": made(0) for number in range(MAX_ON_REQUEST)}
    state = replace(two_hosts(), services=many)
    refused = decide(admission_request(config=of_image()), state)
    assert refused.record is None
    assert refused.code == ReplyCode.CAPACITY_EXCEEDED
    assert f"requests have made {MAX_ON_REQUEST} services" in (refused.response.error or "")
    assert (
        decide(admission_request("s0", config=of_image()), state).record is not None
    )  # no new name
    forgotten = {**many, "s1": made(0, days=REMEMBERED.days)}
    assert (
        decide(admission_request(config=of_image()), replace(state, services=forgotten)).record
        is not None
    )


# ── where it runs ────────────────────────────────────────────────────────────────────────


def test_only_hosts_that_admit_the_image_count_and_are_planned_on() -> None:
    state = two_hosts()
    verdict = decide(admission_request(replicas=9, config=of_image()), state)
    assert verdict.record is not None
    assert verdict.record.target == 4
    assert "max 4 total" in (verdict.response.error or "")
    state = after(state, verdict)
    for name, claims in (("box-a", []), ("box-b", [Claim(slot=n) for n in range(4)])):
        me = HostIdentity(host=name, host_id="id")
        assert plan("web", state, me, {}, now=0.0, at=AT) == claims
    told = {item.name: item for item in planned(admission_request(replicas=4), state).hosts}
    assert told["box-a"].why_not == "it does not offer the service"
    assert told["box-b"].why_not == ""


def test_a_listed_service_and_one_made_by_a_request_share_the_room() -> None:
    state = fleet(hosts={"box-b": admitting(room=4)})
    state = after(state, decide(admission_request(replicas=3, config=of_image()), state))
    verdict = decide(admission_request("jobs", 4), state)
    assert verdict.response.target_replicas == 1
    assert "3 used by other services" in (verdict.response.error or "")
    state = after(state, verdict, "jobs")
    more = decide(admission_request(replicas=9), state).response
    assert more.target_replicas == 3


def test_a_host_that_closes_takes_no_part() -> None:
    state = fleet(hosts={"box-b": admitting(closing=True)})
    assert decide(admission_request(config=of_image()), state).record is None


@given(
    st.lists(st.sampled_from([(), (ANY_NGINX,), ("ghcr.io/**:*",)]), min_size=1, max_size=4),
    st.sampled_from(["nginx", "ghcr.io/a/b:1", "redis:7", "evil.io/docker.io/library/nginx:1"]),
    st.integers(1, 50),
)
def test_no_slot_is_placed_on_a_host_that_does_not_admit_the_image(
    patterns: list[tuple[str, ...]], image: str, replicas: int
) -> None:
    hosts = {
        f"box-{number}": host("jobs", room=3, runtime="oci", images=own)
        for number, own in enumerate(patterns)
    }
    state = fleet(hosts=hosts)
    verdict = decide(admission_request(replicas=replicas, config=of_image(image)), state)
    record = verdict.record
    if record is None:
        assert verdict.response.error
        return
    assert record.target <= 3 * len(able_hosts("web", state, record)[0])
    placed = place("web", state, record, record.slots, at=AT)
    assert len(placed) == record.target
    wanted = {"nginx": (ANY_NGINX,), "ghcr.io/a/b:1": ("ghcr.io/**:*",)}[image]
    assert all(hosts[name].images == wanted for name in placed.values())


# ── what becomes of it ───────────────────────────────────────────────────────────────────


def test_a_service_on_request_is_scaled_again_without_naming_its_image() -> None:
    state = replace(two_hosts(), services={"web": made(2)})
    verdict = decide(admission_request(replicas=3), state)
    assert verdict.record is not None
    assert (verdict.record.target, verdict.record.config.image) == (3, NGINX)
    assert verdict.record.on_request


def test_another_spelling_of_the_image_replaces_no_instance() -> None:
    state = replace(two_hosts(), services={"web": made(2)})
    assert (
        decide(admission_request(replicas=2, config=of_image("nginx:1.27")), state).record is None
    )
    changed = decide(admission_request(replicas=2, config=of_image("nginx:1.28")), state).record
    assert changed is not None
    assert changed.config_id != config_id(of_image())


def test_at_0_its_config_stays_for_a_week_and_its_version_for_good() -> None:
    for days, remembered in ((REMEMBERED.days - 1, True), (REMEMBERED.days, False)):
        state = replace(two_hosts(), services={"web": made(0, days=days)})
        verdict = decide(admission_request(replicas=1), state)
        assert (verdict.record is not None) is remembered
        again = decide(admission_request(replicas=1, config=of_image("nginx:2")), state).record
        assert again is not None
        assert (again.version, again.on_request) == (8, True)


def test_at_0_a_host_that_lists_it_makes_it_its_own() -> None:
    hosts = {"box-b": admitting(), "box-c": host("web")}
    verdict = decide(admission_request(), fleet(hosts=hosts, services={"web": made(0)}))
    assert verdict.record is not None
    assert (verdict.record.on_request, verdict.record.config) == (False, ScaleConfig())
    running = decide(admission_request(replicas=1), fleet(hosts=hosts, services={"web": made(2)}))
    assert running.record is not None
    assert running.record.on_request


def test_a_service_can_be_scaled_down_after_no_host_admits_its_image() -> None:
    claims = {"web": {0: slot("web", 0, on="box-a"), 1: slot("web", 1, on="box-a")}}
    state = fleet(hosts={"box-a": host("jobs")}, services={"web": made(2)}, slots=claims)
    for replicas in (0, 1):
        verdict = decide(admission_request(replicas=replicas), state)
        assert verdict.record is not None
        assert verdict.record.target == replicas
    for question in (
        admission_request(replicas=3),
        admission_request(replicas=1, config=of_image("evil")),
    ):
        refused = decide(question, state)
        assert refused.record is None
        assert "none admits image" in (refused.response.error or "")


def test_a_service_on_request_without_an_image_cannot_run() -> None:
    assert made_from(ServiceRecord(config=of_image())) is None
    assert made_from(ServiceRecord(on_request=True)) is None
    config = made_from(made())
    assert config is not None
    assert config.image == NGINX
    state = replace(two_hosts(), services={"web": made(2)})
    refused = decide(
        admission_request(replicas=2, config=ScaleConfig(vcpus=1), replaces=True), state
    )
    assert refused.record is None
