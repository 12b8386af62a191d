"""The end of a service that no host offers any more. Pure."""

from __future__ import annotations

from datetime import datetime

from msgspec.structs import replace

from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Decision, ServiceRecord, with_request


def retired(service: str, fleet: FleetState, *, at: datetime, host: str) -> ServiceRecord | None:
    """The record with the target 0, after `host` has removed the service from its configuration.

    None if another live host offers it, if a request alone has made it, or if it is at 0.
    """
    record = fleet.services.get(service)
    if record is None or record.on_request or not (record.target or record.slots):
        return None
    if fleet.offering(service).keys() - {host}:
        return None
    note = f"removed from the configuration of {host}, and no other host offers it"
    after = replace(
        record,
        version=record.version + 1,
        revision=record.revision + 1,
        target=0,
        slots=[],
        ranks=[],
        moves=[],
        restarts=[],
        rollout=None,
        decision=Decision(at=at, host=host, replicas=0, error=note),
    )
    return with_request(record, after)
