"""Services that a request alone makes, by naming an image that hosts admit. Pure.

Whether requests make a service is settled when it begins, and remembered in its record: the same
name never means a host's own configuration at one time and an image at another while it has
instances. Names are free to invent, so a fleet remembers a bounded number of them.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord
from bridge.images import full_reference
from bridge.protocol import ScaleConfig
from bridge.settings import ServiceConfig

MAX_ON_REQUEST: Final = 1000  # of a fleet; records are never deleted, a loss of the store is healed
REMEMBERED: Final = timedelta(days=7)  # the config of one at 0; as long as its events are kept


def basis(service: str, fleet: FleetState, at: datetime) -> ServiceRecord:
    """The record that a decision starts from. Whether requests may make the service by an image
    is settled when it begins: they may if no live Box lists it. One that Boxes have run by their
    own configuration is never taken over.
    """
    record, listed = fleet.services.get(service), fleet.is_listed(service)
    if record is None:
        return ServiceRecord(on_request=not listed)
    if _is_idle(record) and (listed or is_forgotten(record, at)):
        return ServiceRecord(
            version=record.version,
            receipts=record.receipts,
            requests=record.requests,
            on_request=not listed,
        )
    return record


def _is_idle(record: ServiceRecord) -> bool:
    return record.on_request and not (record.target or record.slots)


def is_forgotten(record: ServiceRecord, at: datetime) -> bool:
    """Whether nothing of the record counts any more but its version and what it was asked for."""
    decided = record.decision
    return _is_idle(record) and (decided is None or decided.at + REMEMBERED <= at)


def limit_reached(service: str, fleet: FleetState, at: datetime) -> str:
    """Why the service, which a request would make, is one more than a fleet may have; empty if it
    is not.
    """
    there = fleet.services.get(service)
    if there is not None and not is_forgotten(there, at):
        return ""
    made = (item for item in fleet.services.values() if item.on_request)
    if sum(not is_forgotten(item, at) for item in made) < MAX_ON_REQUEST:
        return ""
    return (
        f"unknown service {service!r}: requests have made {MAX_ON_REQUEST} services, and a fleet "
        f"remembers no more; one that is at 0 is forgotten after {REMEMBERED.days} days"
    )


def fully_named(config: ScaleConfig) -> ScaleConfig:
    """`config` with its image in the one form that every engine reads alike; what is no reference
    stays as it is, and is admitted by nobody who has not configured it.
    """
    try:
        return replace(config, image=full_reference(config.image)) if config.image else config
    except ValueError:
        return config


def made_from(record: ServiceRecord) -> ServiceConfig | None:
    """How an instance of a service is made that no host lists; None if requests do not make it."""
    image = record.config.image
    return ServiceConfig(image=image) if record.on_request and image else None
