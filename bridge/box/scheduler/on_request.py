"""Services that a request alone makes, by naming an image that hosts admit. Pure.

Whether requests make a service is decided when it begins, and stored in its record. While it has
instances, its name never changes its meaning from a host's own configuration to an image. Requests
may invent any name, so a fleet remembers a bounded number of them.
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

# In a fleet. Records are never deleted: a missing record counts as lost, and is restored.
MAX_ON_REQUEST: Final = 1000
REMEMBERED: Final = timedelta(days=7)  # the config of a service at 0: as long as its events


def basis(service: str, fleet: FleetState, at: datetime) -> ServiceRecord:
    """The record that a decision starts from. Requests may make the service by an image if no live
    Box lists it when it begins. A service that Boxes have run by their own configuration is never
    taken over.
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
    """Whether only the version and the requests of the record still count."""
    decided = record.decision
    return _is_idle(record) and (decided is None or decided.at + REMEMBERED <= at)


def limit_blocker(service: str, fleet: FleetState, at: datetime) -> str | None:
    """Why a request must not make the service: the fleet remembers as many as it may."""
    record = fleet.services.get(service)
    if record is not None and not is_forgotten(record, at):
        return None
    remembered = sum(
        record.on_request and not is_forgotten(record, at) for record in fleet.services.values()
    )
    if remembered < MAX_ON_REQUEST:
        return None
    return (
        f"unknown service {service!r}: requests have made {MAX_ON_REQUEST} services, and a fleet "
        f"remembers no more; one that is at 0 is forgotten after {REMEMBERED.days} days"
    )


def fully_named(config: ScaleConfig) -> ScaleConfig:
    """`config` with its image as a full reference, which every engine reads alike. An invalid
    reference stays as it is: only a host that is configured with it admits it.
    """
    try:
        return replace(config, image=full_reference(config.image)) if config.image else config
    except ValueError:
        return config


def made_from(record: ServiceRecord) -> ServiceConfig | None:
    """The configuration of a service that no host lists; None if requests do not make it."""
    image = record.config.image
    return ServiceConfig(image=image) if record.on_request and image else None
