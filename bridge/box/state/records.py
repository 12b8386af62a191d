"""The fleet's records: what Boxes keep in JetStream buckets and agree through.

They are the Boxes' own business, not the wire contract: gateways see events, registrations and
`box.instances`. Unknown fields are ignored, so that a newer Box may write more. Pure.
"""

from __future__ import annotations

import hashlib
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from bridge.errors import ProtocolError
from bridge.protocol import InstanceInfo, ScaleConfig, ScaleRequest, Time, encode
from bridge.subjects import check_name

RECEIPTS: Final = 64  # the last of each service (WIRE, "What a scale request means")
REQUESTS: Final = 24  # the last of each service that its record itself remembers
_REMEMBERED: Final = 100  # letters of why it was capped: the record is written at each decision
MAX_FAILED_REPLACEMENTS: Final = 3  # running, and a rollout stops (WIRE, same place)


class Receipt(Struct, frozen=True, kw_only=True):
    """What a request with an id was answered, so that a repeat has no second effect."""

    request_id: str
    body: str
    accepted: bool
    current: int
    target: int
    error: str | None = None


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asked for what, when, and which host decided: the decision log of a service.

    Nobody asked for the `replicas` of a `step`: they are the target, which it leaves as it is.
    """

    at: Time
    host: str
    replicas: int
    request_id: str = ""
    error: str | None = None
    traceparent: str = ""
    step: bool = False


class Request(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision that somebody asked for, as version `version` of the record has it: what history
    tells of it when the store keeps that version no more, for steps that came after.
    """

    version: int
    before: int
    after: int
    decision: Decision
    reconfigured: bool = False


class Avoidance(Struct, frozen=True, kw_only=True):
    """A slot is kept off a host, on which its instances kept failing, until a time."""

    slot: int
    host: str
    until: Time


class Rollout(Struct, frozen=True, kw_only=True):
    """Failed replacements, running, while instances change to the config `config`.

    `stopped` says why no further instance is replaced; empty while the rollout may go on.
    """

    config: str
    failures: int = 0
    stopped: str = ""


class ServiceRecord(Struct, frozen=True, kw_only=True):
    """The desired state of one service: `box_services`, key ``<service>``.

    `version` counts this service's decisions. `slots` is sorted; it has `target` members but
    for one extra while a rollout replaces an instance. `moves` are slots whose instances are to be
    replaced on other hosts, `avoid` says where which slot must not be placed. `on_request`: a
    request alone has made the service, by an image, and each host that admits that can run it.
    """

    version: int = 0
    target: int = 0
    slots: list[int] = field(default_factory=list)
    config: ScaleConfig = field(default_factory=ScaleConfig)
    on_request: bool = False
    rollout: Rollout | None = None
    moves: list[int] = field(default_factory=list)
    avoid: list[Avoidance] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    decision: Decision | None = None

    @property
    def config_id(self) -> str:
        """Names `config`: instances made under another name differ and are replaced."""
        return config_id(self.config)

    @property
    def settled(self) -> bool:
        """Whether nothing is being replaced, as far as the record itself says."""
        return self.rollout is None and not self.moves and len(self.slots) == self.target


class Demand(Struct, frozen=True, kw_only=True):
    """What an instance is to have of its host: processors, and MiB of memory; 0 is no wish."""

    vcpus: int = 0
    memory_mib: int = 0

    @classmethod
    def of(cls, vcpus: int | None, memory_mib: int | None, usual: Demand | None = None) -> Demand:
        """The values given; where there is none, the `usual` one."""
        usual = usual or NOTHING
        if vcpus is None and memory_mib is None:
            return usual
        return cls(
            vcpus=usual.vcpus if vcpus is None else vcpus,
            memory_mib=usual.memory_mib if memory_mib is None else memory_mib,
        )

    def plus(self, other: Demand, times: int = 1) -> Demand:
        """This and `times` the other."""
        return Demand(
            vcpus=self.vcpus + times * other.vcpus,
            memory_mib=self.memory_mib + times * other.memory_mib,
        )


NOTHING: Final = Demand()


class SlotRecord(Struct, frozen=True, kw_only=True):
    """Who runs a slot, and the instance in it: `box_slots`, key ``<service>.<slot>``.

    `config` is the config_id that the instance was made with, `demand` what it has of its host,
    `seq` the Box-Seq of its last event.
    """

    host: str
    host_id: str
    config: str
    seq: int
    info: InstanceInfo
    demand: Demand = NOTHING


class HostIdentity(Struct, frozen=True, kw_only=True):
    """The host that plans: its name and the random id of its data directory."""

    host: str
    host_id: str

    def holds(self, record: SlotRecord) -> bool:
        """Whether `record` is a claim of this host."""
        return record.host == self.host and record.host_id == self.host_id


def check_claim(key: str, claim: SlotRecord) -> None:
    """Raise ProtocolError where `claim` names what can be no name, or not the service of `key`."""
    check_name("host", claim.host)
    check_name("instance id", claim.info.id)
    if claim.info.service != key.rpartition(".")[0]:
        problem = f"{claim.info.service[:80]!r} is not the service of its key"
        raise ProtocolError("SlotRecord", "info.service", problem)


class Offer(Struct, frozen=True, kw_only=True):
    """What a host says of a service it can run.

    `fixed_port` 0 means any port will do. `needs` are the labels that a host must have for it.
    `demand` is what an instance is to have unless a request's config says otherwise. `max_surge` is
    how many extra instances there may be while instances are being replaced. `image` is the one
    that an instance is made from, "" if there is none.
    """

    fixed_port: int = 0
    needs: dict[str, str] = field(default_factory=dict)
    demand: Demand = NOTHING
    max_surge: int = 1
    image: str = ""


NO_OFFER: Final = Offer()


class HostRecord(Struct, frozen=True, kw_only=True):
    """A live host and what it can run: `box_hosts`, key ``<host>``, renewed as a lease.

    `memory_mib` is the memory of the host, 0 where that is not known. `images` are the patterns of
    images that requests may name (see bridge.images). `lacks` says what its runtime cannot honour
    there, and why, by the field of a request's config. `notices` are sentences for people about
    what on the host needs attention. One that is not `ready` keeps what it has, and can make
    nothing new: no slot is placed on it. `place` says where the Box works and is no clone's,
    `since` where the bucket was when it took the lease (see bridge.box.host_directory).
    """

    host_id: str
    runtime: str
    cpus: int
    max_instances: int
    services: dict[str, Offer]
    labels: dict[str, str] = field(default_factory=dict)
    memory_mib: int = 0
    images: tuple[str, ...] = ()
    lacks: dict[str, str] = field(default_factory=dict)
    version: str = ""
    closing: bool = False
    ready: bool = True
    notices: list[str] = field(default_factory=list)
    place: str = ""
    since: int = 0


class HostOrder(Struct, frozen=True, kw_only=True):
    """An operator's order for a host: `box_admin`, key ``cordon.<host>``. While there is one, no
    slot is placed on the host.

    With `draining` the instances there are replaced on other hosts, each Ready before the old one
    drains; with `forced` the old one goes even if there is no room for another. `version` counts
    the host's orders; a `lifted` one is none any more, and stays, so that a store which comes back
    with an older one is noticed.
    """

    draining: bool = False
    forced: bool = False
    reason: str = ""
    at: Time | None = None
    version: int = 0
    lifted: bool = False


def config_id(config: ScaleConfig) -> str:
    """A short name for `config` that any two Boxes give alike."""
    ordered = replace(config, env=dict(sorted(config.env.items())))
    return hashlib.blake2s(encode(ordered), digest_size=6).hexdigest()


def body_hash(request: ScaleRequest, *, replaces_config: bool) -> str:
    """Names what a request asks for, but for its id: the same id must mean the same thing."""
    ordered = replace(
        request,
        request_id="",
        config=replace(request.config, env=dict(sorted(request.config.env.items()))),
    )
    mode = b"replace" if replaces_config else b"merge"
    return hashlib.blake2s(mode + encode(ordered), digest_size=16).hexdigest()


def merged(current: ScaleConfig, asked: ScaleConfig, *, replaces: bool) -> ScaleConfig:
    """The overrides after a request: a null or empty field of `asked` leaves its override as
    it is, unless the request states the whole config.
    """
    if replaces:
        return asked
    return ScaleConfig(
        image=asked.image or current.image,
        vcpus=current.vcpus if asked.vcpus is None else asked.vcpus,
        memory_mib=current.memory_mib if asked.memory_mib is None else asked.memory_mib,
        env=asked.env or current.env,
        port_map=asked.port_map or current.port_map,
    )


def with_request(before: ServiceRecord, after: ServiceRecord) -> ServiceRecord:
    """The record `after`, which somebody asked for, with its decision among its requests, the last
    few of which it keeps.
    """
    decision = after.decision
    if decision is None:
        return after
    short = replace(decision, traceparent="", error=decision.error and decision.error[:_REMEMBERED])
    request = Request(
        version=after.version,
        before=before.target,
        after=after.target,
        decision=short,
        reconfigured=before.config != after.config,
    )
    return replace(after, requests=[*before.requests, request][-REQUESTS:])


def is_empty(config: ScaleConfig) -> bool:
    """Whether a request's config asks for no override at all."""
    return merged(ScaleConfig(), config, replaces=False) == ScaleConfig()
