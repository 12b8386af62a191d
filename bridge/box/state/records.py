"""The fleet's records: what Boxes keep in JetStream buckets and agree through.

They are not part of the wire contract: only Boxes read them. Unknown fields are ignored, so that a
newer Box may write more. Pure.

Any writer of a bucket can write any value, so each number, text and list has a bound: what the
journal can store, and what a plan can work with in bounded time. A record beyond its bounds cannot
be read: it is kept apart, as a damaged one is.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from bridge.errors import ProtocolError
from bridge.protocol import (
    U32,
    InstanceInfo,
    ScaleConfig,
    ScaleRequest,
    Time,
    encode,
    in_utc,
)
from bridge.subjects import check_name

MAX_SLOTS: Final = 100_000  # of one service; its record must fit into 1 MiB
MAX_NOTICES: Final = 256  # of one host
MAX_TEXT: Final = 4096  # characters of a sentence

Number = Annotated[int, Meta(ge=0, le=2**53)]
"""A version or a sequence: SQLite and every JSON reader can store it, also with 1 added."""

_INT64: Final = 2**63 - 1
_FIRST_VERSION: Final = 2**52  # the highest that is accepted where none is known
_MAX_STEP: Final = 2**32  # more decisions than a fleet takes while one of its Boxes is away

Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Names = Annotated[tuple[Text, ...], Meta(max_length=1000)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Slots = Annotated[list[U32], Meta(max_length=MAX_SLOTS)]
Traceparent = Annotated[
    str, Meta(pattern=r"^(?:[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?\Z")
]

RECEIPTS: Final = 64  # the last of each service (WIRE, "What a scale request means")
REQUESTS: Final = 24  # the last of each service that its record keeps itself
_ERROR_LENGTH: Final = 100  # characters of a kept request's error: each decision writes the record
MAX_FAILED_REPLACEMENTS: Final = 3  # consecutive ones, then a rollout stops (WIRE, same place)


class Receipt(Struct, frozen=True, kw_only=True):
    """The answer to a request with an id, so that a repeat has no second effect."""

    request_id: Text
    body: Text
    accepted: bool
    current: U32
    target: U32
    error: Text | None = None
    revision: Number | None = None


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision, its request and the host that made it: the decision log of a service. The server
    named the `requester`, the NATS user that sent the request.

    A `step` of a rollout has no request: its `replicas` are the target, which stays the same.
    """

    at: Time
    host: Text
    replicas: U32
    request_id: Text = ""
    error: Text | None = None
    traceparent: Traceparent = ""
    step: bool = False
    requester: Text = ""


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision that answered a request and made version `version` of the record: what history
    shows of it after the store has dropped that version, because of later steps.
    """

    version: Number
    before: U32
    after: U32
    decision: Decision
    reconfigured: bool = False


class Avoidance(Struct, frozen=True, kw_only=True):
    """A slot is not placed on a host until a time, as its instances kept failing there."""

    slot: U32
    host: Text
    until: Time


class Rollout(Struct, frozen=True, kw_only=True):
    """A rollout to the config named `config`, and its consecutive failed replacements.

    `stopped` is the reason why no further instance is replaced; empty while the rollout goes on.
    """

    config: Text
    failures: U32 = 0
    stopped: Text = ""


class ServiceRecord(Struct, frozen=True, kw_only=True):
    """The desired state of one service: `box_services`, key ``<service>``.

    `version` counts this service's decisions, `revision` the granted requests that changed its
    target or its config. `slots` is sorted and has `target` members, and extra ones while a rollout
    replaces instances. `ranks` has the slot of each rank (see bridge.box.state.ranks); it is empty
    if these are the first slots in order. `moves` are the slots whose instances are to be replaced
    on other hosts. `avoid` has the hosts on which slots must not be placed. `on_request`: a request
    alone has made the service, by an image, and each host that admits the image can run it.
    `before_stop` is the target before the service was scaled to 0; 0 while it is not. `restarts`
    are the slots whose instances are to be replaced by others of the same config.
    """

    version: Number = 0
    revision: Number = 0
    target: U32 = 0
    before_stop: U32 = 0
    slots: Slots = field(default_factory=list)
    ranks: Slots = field(default_factory=list)
    config: ScaleConfig = field(default_factory=ScaleConfig)
    on_request: bool = False
    rollout: Rollout | None = None
    moves: Slots = field(default_factory=list)
    restarts: Slots = field(default_factory=list)
    avoid: Annotated[list[Avoidance], Meta(max_length=10_000)] = field(default_factory=list)
    receipts: Annotated[list[Receipt], Meta(max_length=1000)] = field(default_factory=list)
    requests: Annotated[list[Request], Meta(max_length=1000)] = field(default_factory=list)
    decision: Decision | None = None

    @property
    def config_id(self) -> str:
        """The name of `config`. Instances made with a config of another name are replaced."""
        return config_id(self.config)

    @property
    def settled(self) -> bool:
        """Whether, by the record alone, no instance is being replaced."""
        replaces = self.rollout is not None or self.moves or self.restarts
        return not replaces and len(self.slots) == self.target


class Demand(Struct, frozen=True, kw_only=True):
    """The processors, and MiB of memory, that an instance demands of its host; 0 is no demand."""

    vcpus: U32 = 0
    memory_mib: U32 = 0

    @classmethod
    def of(cls, vcpus: int | None, memory_mib: int | None, default: Demand | None = None) -> Demand:
        """The demand with these values, and those of `default` for the ones that are None."""
        default = default or NOTHING
        if vcpus is None and memory_mib is None:
            return default
        return cls(
            vcpus=default.vcpus if vcpus is None else vcpus,
            memory_mib=default.memory_mib if memory_mib is None else memory_mib,
        )

    def plus(self, other: Demand, times: int = 1) -> Demand:
        """The sum of this demand and `times` the other."""
        return Demand(
            vcpus=self.vcpus + times * other.vcpus,
            memory_mib=self.memory_mib + times * other.memory_mib,
        )


NOTHING: Final = Demand()


class SlotRecord(Struct, frozen=True, kw_only=True):
    """The claim of a slot by a host, and the instance in it: `box_slots`, key ``<service>.<slot>``.

    `config` is the config_id that the instance was made with, `settings` the settings_id of its
    host's configuration then ("" from an older Box), `demand` its share of the host, `seq` the
    Box-Seq of its last event. Of a failed instance `failure` is the reason, and `retry_at` when
    its host makes the next one; `failures` counts the consecutive ones.
    """

    host: Text
    host_id: Text
    config: Text
    seq: Number
    info: InstanceInfo
    settings: Text = ""
    demand: Demand = NOTHING
    failure: Text = ""
    retry_at: Time | None = None
    failures: U32 = 0


class HostIdentity(Struct, frozen=True, kw_only=True):
    """A host: its name and the random id of its data directory."""

    host: str
    host_id: str

    def holds(self, record: SlotRecord) -> bool:
        """Whether `record` is a claim of this host."""
        return record.host == self.host and record.host_id == self.host_id


def follows(version: int, known: int) -> bool:
    """Whether a record can have this version after the `known` one, 0 if none is known.

    Each decision adds 1. So a version out of reach was not reached by decisions, and must not win
    against every later one.
    """
    return version <= (known + _MAX_STEP if known else _FIRST_VERSION)


def check_service(key: str, record: ServiceRecord) -> None:
    """Raise ProtocolError if `record` breaks a rule of its fields: plans rely on each of them."""
    slots = record.slots
    if any(after <= before for before, after in itertools.pairwise(slots)):
        raise ProtocolError("ServiceRecord", "slots", "expected sorted numbers without a repeat")
    if record.target > len(slots):
        problem = f"{record.target} is more than the {len(slots)} slots"
        raise ProtocolError("ServiceRecord", "target", problem)
    if record.ranks and (
        len(record.ranks) != record.target
        or len(set(record.ranks)) != record.target
        or not set(slots).issuperset(record.ranks)
    ):
        raise ProtocolError("ServiceRecord", "ranks", "expected a different slot for each rank")
    decisions = [record.decision, *(item.decision for item in record.requests)]
    times = [item.until for item in record.avoid] + [each.at for each in decisions if each]
    _check_times("ServiceRecord", times)


def check_claim(key: str, claim: SlotRecord) -> None:
    """Raise ProtocolError if `claim` has an invalid name, or another service than its `key`."""
    check_name("host", claim.host)
    check_name("instance id", claim.info.id)
    if claim.info.service != key.rpartition(".")[0]:
        problem = f"{claim.info.service[:80]!r} is not the service of its key"
        raise ProtocolError("SlotRecord", "info.service", problem)
    if len(claim.info.endpoint or "") > MAX_TEXT:
        raise ProtocolError("SlotRecord", "info.endpoint", f"longer than {MAX_TEXT} letters")
    if (claim.info.health.memory_bytes or 0) > _INT64:
        raise ProtocolError("SlotRecord", "info.health.memory_bytes", "more than 2^63 - 1")
    ready_at = claim.info.ready_at
    _check_times("SlotRecord", [claim.info.created_at, *([ready_at] if ready_at else [])])


def check_host(key: str, record: HostRecord) -> None:
    """Raise ProtocolError if `record` offers a service with an invalid name."""
    for name in record.services:
        check_name("service", name)


def check_order(key: str, order: HostOrder) -> None:
    """Raise ProtocolError if the time of `order` cannot be written in UTC."""
    _check_times("HostOrder", [order.at] if order.at else [])


def _check_times(record: str, times: Iterable[datetime]) -> None:
    for at in times:
        try:
            in_utc(at)
        except OverflowError as exc:
            raise ProtocolError(record, "", "a time lies outside the years 1 to 9999") from exc


class Offer(Struct, frozen=True, kw_only=True):
    """The offer of a host to run a service.

    `fixed_port` 0 means that any port will do. `needs` are the labels that a host must have for it.
    `demand` is the default demand of an instance; a request's config may change it. `max_surge` is
    how many extra instances there may be while instances are being replaced. `image` is the one
    that an instance is made from, "" without one. `request_env` are the variables that requests may
    set; None if an older Box offers it, which lets requests set any.
    `settings` is the settings_id of the service.
    """

    fixed_port: Port = 0
    needs: dict[Text, Text] = field(default_factory=dict)
    demand: Demand = NOTHING
    max_surge: U32 = 1
    image: Text = ""
    request_env: Names | None = None
    settings: Text = ""


NO_OFFER: Final = Offer()


class HostRecord(Struct, frozen=True, kw_only=True):
    """A live host and what it can run: `box_hosts`, key ``<host>``, renewed as a lease.

    `memory_mib` is the memory of the host, 0 if unknown. `images` are the patterns of images that
    requests may name (see bridge.images). `lacks` has, by field of a request's config, the reason
    why its runtime cannot honour the field. `notices` are sentences about problems that need a
    person's attention. A host that `decides` writes desired states and orders; a runner does not.
    A host that is not `ready` keeps its instances and gets no further slots.
    `request_env` are the variables that requests may set for services that requests make, and
    `request_ports` the first and the last host port that requests may fix; None of an older Box.
    `place` tells the Box from a clone of its host, `since` is the sequence of the bucket when it
    took the lease (see bridge.box.host_directory).
    """

    host_id: Text
    runtime: Text
    cpus: U32
    max_instances: Annotated[int, Meta(ge=0, le=MAX_SLOTS)]
    services: dict[str, Offer]
    labels: dict[Text, Text] = field(default_factory=dict)
    memory_mib: U32 = 0
    images: Names = ()
    lacks: dict[Text, Text] = field(default_factory=dict)
    version: Text = ""
    closing: bool = False
    ready: bool = True
    notices: Annotated[list[Text], Meta(max_length=MAX_NOTICES)] = field(default_factory=list)
    place: Text = ""
    since: Number = 0
    request_env: Names | None = None
    request_ports: tuple[Port, Port] | None = None
    decides: bool = True


class HostOrder(Struct, frozen=True, kw_only=True):
    """An operator's order for a host: `box_admin`, key ``cordon.<host>``. While it is in force, no
    slot is placed on the host.

    With `draining` the instances there are replaced on other hosts, each Ready before the old one
    drains. With `forced` the old one drains even if no host has room for another. `version` counts
    the host's orders. A `lifted` order is not in force, and is kept so that a store which comes
    back with an older one is noticed.
    """

    draining: bool = False
    forced: bool = False
    reason: Text = ""
    at: Time | None = None
    version: Number = 0
    lifted: bool = False
    requester: Text = ""


def config_id(config: ScaleConfig) -> str:
    """A short name for `config`, the same on every Box."""
    ordered = replace(config, env=dict(sorted(config.env.items())))
    return hashlib.blake2s(encode(ordered), digest_size=6).hexdigest()


def body_hash(request: ScaleRequest, *, replaces_config: bool, digest: str = "") -> str:
    """A hash of the request without its id: a repeat with the same id must have the same hash.
    `digest` stands for what else a repeat must repeat.
    """
    ordered = replace(
        request,
        request_id="",
        config=replace(request.config, env=dict(sorted(request.config.env.items()))),
    )
    mode = b"replace" if replaces_config else b"merge"
    return hashlib.blake2s(mode + encode(ordered) + digest.encode(), digest_size=16).hexdigest()


def merged(current: ScaleConfig, overrides: ScaleConfig, *, replaces: bool) -> ScaleConfig:
    """The overrides after a request with these `overrides`: a null or empty field leaves the
    current one as it is, unless the request `replaces` the whole config.
    """
    if replaces:
        return overrides
    return ScaleConfig(
        image=overrides.image or current.image,
        vcpus=current.vcpus if overrides.vcpus is None else overrides.vcpus,
        memory_mib=current.memory_mib if overrides.memory_mib is None else overrides.memory_mib,
        env=overrides.env or current.env,
        port_map=overrides.port_map or current.port_map,
    )


def with_request(before: ServiceRecord, after: ServiceRecord) -> ServiceRecord:
    """The record `after`, with its decision, which answers a request, among its kept requests."""
    decision = after.decision
    if decision is None:
        return after
    short = replace(
        decision, traceparent="", error=decision.error and decision.error[:_ERROR_LENGTH]
    )
    request = Request(
        version=after.version,
        before=before.target,
        after=after.target,
        decision=short,
        reconfigured=before.config != after.config,
    )
    return replace(after, requests=[*before.requests, request][-REQUESTS:])


def is_empty(config: ScaleConfig) -> bool:
    """Whether a request's config has no override."""
    return merged(ScaleConfig(), config, replaces=False) == ScaleConfig()
