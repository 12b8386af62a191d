"""Fleets for tests of the pure modules, as values and as strategies."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from bridge.admin_protocol import PlanResponse
from bridge.box.scheduler import reports
from bridge.box.scheduler.admission import AdmissionRequest, decide
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostRecord, Offer, ServiceRecord, SlotRecord
from bridge.protocol import InstanceHealth, InstanceInfo, InstanceState, ScaleConfig, ScaleRequest

AT = datetime(2026, 11, 21, 8, tzinfo=UTC)
SERVICES = ("web", "api", "jobs")


def host(
    *services: str,
    room: int = 10,
    closing: bool = False,
    ready: bool = True,
    cpus: int = 4,
    fixed_port: int = 0,
    runtime: str = "process",
    images: tuple[str, ...] = (),
    zone: str = "",
    needs: Mapping[str, str] | None = None,
) -> HostRecord:
    """A host in a `zone` that offers `services`; `needs` says which of them need which zone."""
    return HostRecord(
        host_id="id",
        runtime=runtime,
        images=images,
        cpus=cpus,
        max_instances=room,
        services={
            name: Offer(fixed_port=fixed_port, needs=_zone((needs or {}).get(name, "")))
            for name in services or SERVICES
        },
        labels=_zone(zone),
        closing=closing,
        ready=ready,
    )


def _zone(name: str) -> dict[str, str]:
    return {"zone": name} if name else {}


def slot(
    service: str,
    number: int,
    state: InstanceState = InstanceState.READY,
    *,
    on: str = "box-a",
    inflight: int = 0,
    age: float = 0,
    config: str | None = None,
    ready: bool = True,
) -> SlotRecord:
    """A claimed slot; `age` in seconds before AT."""
    created = AT - timedelta(seconds=age)
    info = InstanceInfo(
        id=f"{service}-{number}-{on}",
        state=state,
        service=service,
        created_at=created,
        ready_at=created if ready else None,
        endpoint=f"127.0.0.1:{20000 + number}",
        health=InstanceHealth(inflight_requests=inflight),
    )
    return SlotRecord(
        host=on,
        host_id="id",
        config=ServiceRecord().config_id if config is None else config,
        seq=1,
        info=info,
    )


def fleet(
    *,
    hosts: dict[str, HostRecord] | None = None,
    services: dict[str, ServiceRecord] | None = None,
    slots: dict[str, dict[int, SlotRecord]] | None = None,
    unreadable: dict[str, set[int]] | None = None,
    lost: dict[str, dict[int, str]] | None = None,
) -> FleetState:
    used: dict[str, int] = {}
    for claims in (slots or {}).values():
        for claim in claims.values():
            used[claim.host] = used.get(claim.host, 0) + 1
    return FleetState(
        hosts={"box-a": host()} if hosts is None else hosts,
        services=services or {},
        slots=slots or {},
        unreadable=unreadable or {},
        lost=lost or {},
        used=used,
    )


def admission_request(
    service: str = "web",
    replicas: int = 1,
    *,
    request_id: str = "",
    config: ScaleConfig | None = None,
    replaces: bool = False,
    dry_run: bool = False,
) -> AdmissionRequest:
    return AdmissionRequest(
        request=ScaleRequest(
            service=service,
            replicas=replicas,
            request_id=request_id,
            config=config or ScaleConfig(),
        ),
        host="box-a",
        at=AT,
        replaces_config=replaces,
        dry_run=dry_run,
    )


@st.composite
def fleets(draw: st.DrawFn, max_hosts: int = 4) -> FleetState:
    """A fleet in any state that Boxes can have left it in."""
    names = [f"box-{letter}" for letter in "abcd"[: draw(st.integers(1, max_hosts))]]
    needs = {service: draw(st.sampled_from(["", "", "a"])) for service in SERVICES}
    hosts = {
        name: host(
            *draw(st.lists(st.sampled_from(SERVICES), min_size=1, unique=True)),
            room=draw(st.integers(1, 6)),
            closing=draw(st.sampled_from([False, False, False, True])),
            zone=draw(st.sampled_from(["a", "a", "b"])),
            needs=needs,
        )
        for name in names
    }
    services: dict[str, ServiceRecord] = {}
    slots: dict[str, dict[int, SlotRecord]] = {}
    for service in draw(st.lists(st.sampled_from(SERVICES), unique=True)):
        members = draw(st.lists(st.integers(0, 7), unique=True, max_size=5))
        services[service] = ServiceRecord(version=1, target=len(members), slots=sorted(members))
        claimed = draw(st.lists(st.integers(0, 9), unique=True, max_size=6))
        slots[service] = {
            number: slot(
                service,
                number,
                draw(st.sampled_from(InstanceState)),
                on=draw(st.sampled_from([*names, "box-gone"])),
                inflight=draw(st.integers(0, 2)),
                age=draw(st.integers(0, 3)),
            )
            for number in claimed
        }
    return fleet(hosts=hosts, services=services, slots=slots)


def planned(request: AdmissionRequest, state: FleetState) -> PlanResponse:
    """The plan of a request, as a Box answers it."""
    return reports.plan(request, decide(request, state), state)
