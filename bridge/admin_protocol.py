"""The requests of operators and the responses of any Box. They are not part of the wire contract.

They are JSON as `bridge.protocol` reads and writes it. Unknown fields are ignored, so that a newer
peer may send more. Requests are bounded here. A response is cut to the server's `max_payload`, and
says so.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from bridge.log_protocol import LogsResponse
from bridge.protocol import U32, Time

MAX_WORDS: Final = 500  # characters
Words = Annotated[str, Meta(max_length=MAX_WORDS)]
Name = Annotated[str, Meta(max_length=63)]


class Verb(enum.Enum):
    """The orders of an operator. The values travel."""

    CORDON = "cordon"
    DRAIN = "drain"
    UNCORDON = "uncordon"
    REBALANCE = "rebalance"
    RESTART = "restart"


# ── box.hosts ────────────────────────────────────────────────────────────────────────────


class HostsRequest(Struct, frozen=True, kw_only=True):
    """A request for a page of the fleet's hosts, by name; with `host` only for that one.

    `after` is the last name of the page before; the page begins after it, and `offset` counts only
    for a Box that does not know `after`.
    """

    host: str = ""
    offset: U32 = 0
    limit: U32 = 200
    after: Name = ""


class Order(Struct, frozen=True, kw_only=True):
    """An operator's order for a host: no slots are placed there. With `draining` its instances move
    to other hosts, with `forced` they end even without room elsewhere.
    """

    draining: bool = False
    forced: bool = False
    reason: str = ""
    at: Time | None = None
    requester: str = ""


class Host(Struct, frozen=True, kw_only=True):
    """One host: live, or dead with slots that are still to be taken over.

    - `used`: its slots, of `max_instances`; `services` counts them by service.
    - `offers`: the services that it can run; `images`: the patterns of images that requests may
      name.
    - `ready`: a live host that is not ready keeps its instances and gets no slots; `notices` has
      the reasons.
    - `stuck`: while it is being drained, by service, why no further instance is replaced.
    - `short`: while it is being drained, and if it is dead, by service, how many instances have no
      room elsewhere. After a forced drain it counts those that have ended, too.
    """

    name: str
    live: bool
    used: U32
    services: dict[str, U32]
    order: Order | None = None
    stuck: dict[str, str] = field(default_factory=dict)
    short: dict[str, U32] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    closing: bool = False
    ready: bool = True
    labels: dict[str, str] = field(default_factory=dict)
    version: str = ""
    runtime: str = ""
    cpus: U32 = 0
    memory_mib: U32 = 0
    max_instances: U32 = 0
    offers: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


class HostsResponse(Struct, frozen=True, kw_only=True):
    """A page of hosts, by name. `total` counts all that match, listed or not. `more`: whether
    further ones follow; None from a Box that does not know `after`.
    """

    total: U32
    hosts: list[Host]
    error: str | None = None
    more: bool | None = None


# ── box.services ─────────────────────────────────────────────────────────────────────────


class ServicesRequest(Struct, frozen=True, kw_only=True):
    """A request for a page of the fleet's services, by name; with `service` only for that one.
    `after` and `offset` as in a HostsRequest.
    """

    service: str = ""
    offset: U32 = 0
    limit: U32 = 200
    after: Name = ""


class FailedSlot(Struct, frozen=True, kw_only=True):
    """A slot whose instance has failed. `retry_at` is when `host` makes the next one, if known."""

    instance_id: str
    host: str
    reason: str = ""
    retry_at: Time | None = None


class Service(Struct, frozen=True, kw_only=True):
    """One service, with a target or only offered by a host.

    - `wanted`: its target; `ready` and `busy` count its instances on live hosts; `other` counts
      the remaining ones that have not ended: they boot, drain, or are on dead hosts.
    - `missing`: a sentence for each kind of missing instance, with the reason. Instances that boot
      are not missing.
    - `replacing`: how many instances are still to be replaced; `stopped`: why no further one is.
    - `before_stop`: the target before the service was scaled to 0, which a start restores; 0 if it
      was not.
    - `failed`: the slots whose instance has failed, the first 20.
    """

    name: str
    wanted: U32
    ready: U32
    busy: U32
    other: U32
    missing: list[str] = field(default_factory=list)
    replacing: U32 = 0
    stopped: str = ""
    before_stop: U32 = 0
    failed: list[FailedSlot] = field(default_factory=list)


class ServicesResponse(Struct, frozen=True, kw_only=True):
    """A page of services, by name. `total` and `more` as in a HostsResponse."""

    total: U32
    services: list[Service]
    error: str | None = None
    more: bool | None = None


# ── box.admin ────────────────────────────────────────────────────────────────────────────


class AdminRequest(Struct, frozen=True, kw_only=True):
    """An order. `host` is for the verbs about a host. A rebalance takes a `service` (empty: all), a
    restart a `service` and an `instance_id` (empty: all of them).

    `force` is for a drain, and for a cordon of a host that no Box has seen; `dry_run` is for a
    rebalance. `reason` is stored and shown.
    """

    verb: Verb
    host: Name = ""
    service: Name = ""
    instance_id: Name = ""
    force: bool = False
    dry_run: bool = False
    reason: Words = ""
    request_id: Annotated[str, Meta(max_length=128)] = ""


class Move(Struct, frozen=True, kw_only=True):
    """An instance that is to be replaced on another host. The `target` is a forecast: the placement
    of the replacement decides.
    """

    service: str
    slot: U32
    instance_id: str
    source: str
    target: str


class AdminResponse(Struct, frozen=True, kw_only=True):
    """Whether the order is in force, as it may have been before; else `error` says what to do.

    - `affected`: how many slots a host had when its drain was ordered, or how many instances a
      restart replaces.
    - `moves`: those of a rebalance; `more`: whether further moves remain after these.
    - `waiting`: by service, the reason why its instances stay where they are.
    """

    done: bool
    error: str | None = None
    affected: U32 = 0
    moves: list[Move] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    more: bool = False


# ── box.history ──────────────────────────────────────────────────────────────────────────


class HistoryRequest(Struct, frozen=True, kw_only=True):
    """A request for the decisions on a service: the last 64, which the store keeps, and those on
    the last 24 requests, if they are older.
    """

    service: str


class Entry(Struct, frozen=True, kw_only=True):
    """One decision on a service.

    - `replicas`: the target that was requested; None for a step of a rollout.
    - `before` and `after`: the targets; `before` is None if the store has dropped the record.
    - `note`: why the target was capped, or which step of a rollout it was, and its cause.
    - `added` and `removed`: slots, if the store still has both records.
    - `reconfigured`: whether the overrides changed.
    - `requester`: the NATS user that sent the request, if the server names it.
    """

    version: int
    after: U32
    before: U32 | None = None
    at: Time | None = None
    host: str = ""
    request_id: str = ""
    replicas: U32 | None = None
    note: str = ""
    added: list[U32] = field(default_factory=list)
    removed: list[U32] = field(default_factory=list)
    reconfigured: bool = False
    requester: str = ""


class HistoryResponse(Struct, frozen=True, kw_only=True):
    """The decisions on `service`, oldest first; `omitted` older ones did not fit into the reply."""

    service: str
    entries: list[Entry]
    error: str | None = None
    omitted: U32 = 0


# ── box.plan ─────────────────────────────────────────────────────────────────────────────


class PlanRequest(Struct, frozen=True, kw_only=True):
    """A request for the effect of scaling `service` to `replicas`; nothing is changed."""

    service: str
    replicas: U32


class Fate(enum.Enum):
    """The fate of a slot in a plan. The values travel."""

    COMES = "comes"  # an instance would be made
    WAITS = "waits"  # no host has room for one
    FAILS = "fails"  # no instance lives there: its host will retry
    GOES = "goes"  # its instance would drain
    MOVES = "moves"  # its instance is to be replaced
    STAYS = "stays"


class PlannedSlot(Struct, frozen=True, kw_only=True):
    """A slot and its host, empty if it has none. `instance_id` is empty before it is made."""

    slot: U32
    fate: Fate
    host: str = ""
    instance_id: str = ""


class Candidate(Struct, frozen=True, kw_only=True):
    """A live host, or a dead one that still has slots: how many more instances of the service it
    could take now, and why it could take none, or none in some slots.
    """

    name: str
    room: U32
    why_not: str = ""


class PlanResponse(Struct, frozen=True, kw_only=True):
    """The effect of a request for `replicas`: the `target` after it.

    - `error`: why `target` differs from `replicas`, or why nothing would be done (`accepted` is
      false and the target stays the same).
    - `slots`: those whose fate changes come first; `omitted` slots and hosts did not fit into the
      reply.
    - `stuck`: why no outdated instance is being replaced.
    - `code`: the `Box-Code` of the request, if it would not be carried out as it is.
    """

    service: str
    replicas: U32
    accepted: bool
    before: U32
    target: U32
    slots: list[PlannedSlot]
    hosts: list[Candidate]
    error: str | None = None
    omitted: U32 = 0
    stuck: str = ""
    code: str = ""


Answer = (
    HostsResponse | ServicesResponse | AdminResponse | HistoryResponse | PlanResponse | LogsResponse
)
