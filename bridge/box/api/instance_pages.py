"""The pages of `box.instances`: a page costs what it lists, not what the fleet holds.

A cursor names the last instance of a page, so it stays valid on every Box, and while instances
come and go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from bridge.box.state import age_order
from bridge.box.state.age_order import Place
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.box.state.ranks import rank_of
from bridge.errors import ProtocolError
from bridge.protocol import (
    InstanceInfo,
    InstancesRequest,
    InstancesResponse,
    format_time,
    parse_time,
)

SMALLEST: Final = 160  # bytes of a listed instance, at least
_MOST: Final = 10_000  # instances on one page: to collect them takes 50 ms


def page(fleet: FleetState, request: InstancesRequest, max_payload: int) -> InstancesResponse:
    """The page that `request` asks for; `max_payload` allows a page as long or a shorter one.

    Raises ProtocolError for an invalid cursor.
    """
    places = fleet.slot_index.age_order.places(request.service)
    ended = _ended(fleet, places, request.service)
    if request.after:
        start = age_order.after(places, *_parse(request.after))
    else:
        start = request.offset
        for index in ended:
            start += index <= start
    most = min(request.limit, _MOST, max_payload // SMALLEST)
    instances: list[InstanceInfo] = []
    hosts: dict[str, str] = {}
    ranks: dict[str, int] = {}
    record = fleet.services.get(request.service)
    rank_in = rank_of(record) if record else None
    left_out = set(ended)
    for index in range(start, len(places)):
        if len(instances) == most:
            break
        if index not in left_out:
            _, instance_id, service, slot = places[index]
            claim = fleet.slots[service][slot]
            instances.append(fleet.latest(claim))
            hosts[instance_id] = claim.host
            if rank_in and (rank := rank_in(slot)) is not None:
                ranks[instance_id] = rank
    last = not places or not instances or _place_of(instances[-1]) == places[-1][:2]
    return InstancesResponse(
        total=len(places) - len(ended),
        instances=instances,
        hosts=hosts,
        next="" if last else _cursor(instances[-1]),
        target=_target(fleet, request.service),
        revision=record.revision if record else 0,
        ranks=ranks,
    )


def first(response: InstancesResponse, count: int) -> InstancesResponse:
    """The page with its first `count` instances, and the cursor after them."""
    if count == len(response.instances):
        return response
    instances = response.instances[:count]
    ids = {info.id for info in instances}
    hosts = {key: host for key, host in response.hosts.items() if key in ids}
    ranks = {key: rank for key, rank in response.ranks.items() if key in ids}
    cursor = _cursor(instances[-1]) if instances else ""
    return replace(response, instances=instances, hosts=hosts, ranks=ranks, next=cursor)


def _target(fleet: FleetState, service: str) -> int | None:
    """The target of `service`; None if it has no record and no live host offers it."""
    if record := fleet.services.get(service):
        return record.target
    return 0 if fleet.offering(service) else None


def _ended(fleet: FleetState, places: Sequence[Place], service: str) -> list[int]:
    """The indexes of this host's instances that have ended, ahead of their records."""
    indexes = []
    for info in fleet.own_instances.values():
        if info.state in ENDED and service in ("", info.service):
            index = bisect_left(places, (info.created_at, info.id))
            if index < len(places) and places[index][:2] == _place_of(info):
                indexes.append(index)
    return sorted(indexes)


def _place_of(info: InstanceInfo) -> tuple[datetime, str]:
    return info.created_at, info.id


def _cursor(info: InstanceInfo) -> str:
    return f"{format_time(info.created_at)}/{info.id}"


def _parse(cursor: str) -> tuple[datetime, str]:
    at, slash, instance_id = cursor.partition("/")
    if not slash:
        raise ProtocolError("InstancesRequest", "after", "is not the `next` of a page")
    return parse_time(at), instance_id
