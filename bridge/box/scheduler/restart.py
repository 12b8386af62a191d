"""A restart: living instances are replaced by others of the same config, one step at a time. Pure.

The steps are those of a rollout: each replacement is Ready before its instance drains, unless there
is no room for both.
"""

from __future__ import annotations

from msgspec.structs import replace

from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import Decision, ServiceRecord, with_request


def restarted_slots(service: str, fleet: FleetState, instance_id: str) -> list[int]:
    """The slots of the set with a living instance; with an `instance_id` only that one's."""
    record, claims = fleet.services.get(service), fleet.slots_of(service)
    return [
        slot
        for slot in (record.slots if record else ())
        if (claim := claims.get(slot)) is not None
        and claim.info.state not in ENDED
        and instance_id in ("", claim.info.id)
    ]


def is_repeated(record: ServiceRecord, request_id: str) -> bool:
    """Whether the request with this id was decided before."""
    return bool(request_id) and any(
        item.decision.request_id == request_id for item in record.requests
    )


def with_restart(
    service: str, fleet: FleetState, instance_id: str, decision: Decision
) -> ServiceRecord | None:
    """The service's record with the restart of its instances, or of one; None if there is none, or
    if the request was decided before. A rollout that has stopped goes on.
    """
    record = fleet.services.get(service)
    if record is None or is_repeated(record, decision.request_id):
        return None
    slots = restarted_slots(service, fleet, instance_id)
    if not slots:
        return None
    stopped = record.rollout is not None and record.rollout.stopped
    what = instance_id or f"{len(slots)} instances"
    after = replace(
        record,
        version=record.version + 1,
        restarts=sorted({*record.restarts, *slots}),
        rollout=None if stopped else record.rollout,
        decision=replace(decision, replicas=record.target, error=f"restart of {what}", step=True),
    )
    return with_request(record, after)
