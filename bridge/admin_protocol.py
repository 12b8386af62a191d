"""What operators ask a fleet, and what any Box answers: beside the wire contract, in its manner.

JSON as `bridge.protocol` reads and writes it. Unknown fields are ignored, so that a newer peer may
send more. What a caller may send is bounded here; an answer is cut to what the server lets through,
and says so.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

from msgspec import Meta, Struct, field

from bridge.protocol import U32, Time

MAX_WORDS: Final = 500  # letters
Words = Annotated[str, Meta(max_length=MAX_WORDS)]
Name = Annotated[str, Meta(max_length=63)]


class Verb(enum.Enum):
    """What an operator may order. The values travel."""

    CORDON = "cordon"
    DRAIN = "drain"
    UNCORDON = "uncordon"
    REBALANCE = "rebalance"


# ── box.hosts ────────────────────────────────────────────────────────────────────────────


class HostsRequest(Struct, frozen=True, kw_only=True):
    """Asks for a page of the fleet's hosts, by name; with `host` for that one alone."""

    host: str = ""
    offset: U32 = 0
    limit: U32 = 200


class Order(Struct, frozen=True, kw_only=True):
    """What an operator has ordered for a host: nothing is placed there; with `draining` what is
    there moves elsewhere, with `forced` even if there is no room for it.
    """

    draining: bool = False
    forced: bool = False
    reason: str = ""
    at: Time | None = None


class Host(Struct, frozen=True, kw_only=True):
    """One host. A dead one still holds slots; of it no more is known than these.

    `used` counts the slots that it holds, of `max_instances`; `services` says of which services.
    `offers` are those that it can run, `images` the patterns of images that requests may name. One
    that lives and is not `ready` keeps what it has and gets nothing; `notices` say why. While it is
    being drained `stuck` says, by service, why no further instance is replaced; and then, and when
    it is dead, `short` says how many have no room elsewhere, of a forced drain those as well that
    have ended for it.
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
    """A page of hosts, by name. `total` counts all that match, listed or not."""

    total: U32
    hosts: list[Host]
    error: str | None = None


# ── box.services ─────────────────────────────────────────────────────────────────────────


class ServicesRequest(Struct, frozen=True, kw_only=True):
    """Asks for a page of the fleet's services, by name; with `service` for that one alone."""

    service: str = ""
    offset: U32 = 0
    limit: U32 = 200


class Service(Struct, frozen=True, kw_only=True):
    """One service, wanted or merely offered. Of `wanted` instances so many are `ready` or `busy` on
    hosts that live; `other` ones have not ended: they boot, drain, or were on hosts that are dead.

    `missing` says what is missing and why, a sentence each; what boots is not. `replacing` counts
    the instances that are still to be replaced, `stopped` says why no further one is.
    """

    name: str
    wanted: U32
    ready: U32
    busy: U32
    other: U32
    missing: list[str] = field(default_factory=list)
    replacing: U32 = 0
    stopped: str = ""


class ServicesResponse(Struct, frozen=True, kw_only=True):
    """A page of services, by name. `total` counts all that match, listed or not."""

    total: U32
    services: list[Service]
    error: str | None = None


# ── box.admin ────────────────────────────────────────────────────────────────────────────


class AdminRequest(Struct, frozen=True, kw_only=True):
    """An order: `host` for all verbs but rebalance, `service` (empty: all) for that one.

    `force` is for a drain, and for a cordon of a host that nobody has seen; `dry_run` for a
    rebalance. `reason` is kept and shown.
    """

    verb: Verb
    host: Name = ""
    service: Name = ""
    force: bool = False
    dry_run: bool = False
    reason: Words = ""
    request_id: Annotated[str, Meta(max_length=128)] = ""


class Move(Struct, frozen=True, kw_only=True):
    """An instance that is to be replaced on another host. Where to is what is expected: it is
    decided when the replacement is placed.
    """

    service: str
    slot: U32
    instance_id: str
    source: str
    target: str


class AdminResponse(Struct, frozen=True, kw_only=True):
    """Whether the order stands now, as it does if it stood before; else `error` says what to do.

    `affected` counts the slots that a host held when its drain was ordered. `moves` are those of a
    rebalance; `waiting` says, by service, why its instances were left where they are, or, once a
    host is empty, that they wait for room. `more` says that further moves remain when these are
    done.
    """

    done: bool
    error: str | None = None
    affected: U32 = 0
    moves: list[Move] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    more: bool = False


# ── box.history ──────────────────────────────────────────────────────────────────────────


class HistoryRequest(Struct, frozen=True, kw_only=True):
    """Asks for the decisions on a service that the store still has, 64 at most, and for those on
    the last 24 requests that it has no more.
    """

    service: str


class Entry(Struct, frozen=True, kw_only=True):
    """One decision on a service. `replicas` is what was asked for, None where nobody asked;
    `before` and `after` are the targets, `before` None where the store has forgotten. `note` says
    why the target was capped, or which step of a rollout it was, and for what. `added` and
    `removed` are slots, as far as the store still knows them; `reconfigured` says that the
    overrides changed.
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


class HistoryResponse(Struct, frozen=True, kw_only=True):
    """The decisions on `service`, oldest first; `omitted` older ones did not fit the reply."""

    service: str
    entries: list[Entry]
    error: str | None = None
    omitted: U32 = 0


# ── box.plan ─────────────────────────────────────────────────────────────────────────────


class PlanRequest(Struct, frozen=True, kw_only=True):
    """Asks what scaling `service` to `replicas` would do; nothing is changed."""

    service: str
    replicas: U32


class Fate(enum.Enum):
    """What would become of a slot. The values travel."""

    COMES = "comes"  # an instance would be made
    WAITS = "waits"  # no host has room for one
    FAILS = "fails"  # nothing lives there: its host will try again
    GOES = "goes"  # its instance would drain
    MOVES = "moves"  # its instance is to be replaced
    STAYS = "stays"


class PlannedSlot(Struct, frozen=True, kw_only=True):
    """A slot and its host, empty where it has none. `instance_id` is empty for one to be made."""

    slot: U32
    fate: Fate
    host: str = ""
    instance_id: str = ""


class Candidate(Struct, frozen=True, kw_only=True):
    """A live host, or a dead one that holds slots: how many more instances of the service it could
    take as it stands, and why none, or none in some slots.
    """

    name: str
    room: U32
    why_not: str = ""


class PlanResponse(Struct, frozen=True, kw_only=True):
    """What would happen: `target` of the `replicas` asked for; `error` says why they differ, or
    why nothing would be done (`accepted` false and the target as it is).

    `slots` are those whose fate changes first; `omitted` slots and hosts did not fit the reply.
    `stuck` says why none is being replaced of the instances that are to be.
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


Answer = HostsResponse | ServicesResponse | AdminResponse | HistoryResponse | PlanResponse
