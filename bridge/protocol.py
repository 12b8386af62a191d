"""The payloads on the bus, exactly as in the Rust crate a3s-box-core 2.4.0.

- `decode` refuses everything that serde_json would refuse, and names the field.
- `encode` writes the bytes that serde_json would write: every field, in the contract's order, None
  as null, times in UTC with 0, 3 or 6 fraction digits, f32 as f32.

msgspec reads what usual peers send. `bridge.serde_json` reads again what msgspec refuses though
serde_json would not, and a message in which a field may stand twice.

Known differences from serde, none of which two well-behaved peers can meet: times are kept to
the microsecond (Rust: nanosecond) and within the years 1 to 9999, a leap second is the moment that
follows it, a struct written as an array is refused, and so is text that is not UTF-8 even in a
field that nobody knows. A message of more than 64 KiB is not read again.
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Self, TypeVar

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from bridge.errors import ProtocolError
from bridge.serde_json import parse_time as chrono_time
from bridge.serde_json import rewrite

U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Meta(ge=0)]  # msgspec takes no bound above int64; `_health` checks it
Time = Annotated[datetime, Meta(tz=True)]

U32_MAX: Final = 2**32 - 1
_U64_MAX: Final = 2**64 - 1


class InstanceState(enum.Enum):
    """The state of an instance. The values are the wire format; `str()` is for people."""

    CREATING = "Creating"
    BOOTING = "Booting"
    READY = "Ready"
    BUSY = "Busy"
    DRAINING = "Draining"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    FAILED = "Failed"

    def __str__(self) -> str:
        return self.value.lower()


class ScaleConfig(Struct, frozen=True, kw_only=True, gc=False):
    """Overrides of a service's configuration. None or empty keeps the configured value."""

    image: str | None = None
    vcpus: U8 | None = None
    memory_mib: U32 | None = None
    env: dict[str, str] = field(default_factory=dict)
    port_map: list[str] = field(default_factory=list)


class ScaleRequest(Struct, frozen=True, kw_only=True, gc=False):
    """The desired state: `service` must have `replicas` instances."""

    service: str
    replicas: U32
    config: ScaleConfig = field(default_factory=ScaleConfig)
    request_id: str = ""


class InstanceHealth(Struct, frozen=True, kw_only=True, gc=False):
    """The health of an instance: CPU in percent of one core, memory in bytes."""

    cpu_percent: float | None = None
    memory_bytes: U64 | None = None
    inflight_requests: U32 = 0
    healthy: bool = True


class InstanceInfo(Struct, frozen=True, kw_only=True, gc=False):
    """The current state of one instance. `endpoint` is ``host:port``, None until it has one."""

    id: str
    state: InstanceState
    service: str
    created_at: Time
    ready_at: Time | None = None
    endpoint: str | None = None
    health: InstanceHealth = field(default_factory=InstanceHealth)


class ScaleResponse(Struct, frozen=True, kw_only=True, gc=False):
    """The reply to a ScaleRequest, with the counts after it."""

    request_id: str
    accepted: bool
    current_replicas: U32
    target_replicas: U32
    instances: list[InstanceInfo]
    error: str | None = None


class InstanceEvent(Struct, frozen=True, kw_only=True, gc=False):
    """A state change of an instance; with equal states it is a note."""

    instance_id: str
    service: str
    from_state: InstanceState
    to_state: InstanceState
    timestamp: Time
    message: str = ""

    @classmethod
    def transition(
        cls,
        instance_id: str,
        service: str,
        from_state: InstanceState,
        to_state: InstanceState,
        *,
        at: datetime | None = None,
    ) -> Self:
        """A change from one state to another, without a message; `at` defaults to now."""
        return cls(
            instance_id=instance_id,
            service=service,
            from_state=from_state,
            to_state=to_state,
            timestamp=datetime.now(UTC) if at is None else at,
        )

    def with_message(self, message: str) -> Self:
        """The same event with `message`."""
        return replace(self, message=message)


class InstanceRegistration(Struct, frozen=True, kw_only=True, gc=False):
    """An instance accepts traffic at `endpoint` (``host:port``)."""

    instance_id: str
    service: str
    endpoint: str
    metadata: dict[str, str] = field(default_factory=dict)
    started_at: Time


class InstanceDeregistration(Struct, frozen=True, kw_only=True, gc=False):
    """An instance accepts no more traffic. That is final: ids are never reused."""

    instance_id: str
    service: str
    reason: str = ""


class InstancesRequest(Struct, frozen=True, kw_only=True, gc=False):
    """A request for a page of the fleet's instances; an empty `service` means all services.

    `after` extends the contract: the `next` of the page before, which then counts in place of
    `offset`. Instances that come or go between two pages shift an offset, not this cursor.
    """

    service: str = ""
    offset: U32 = 0
    limit: U32 = 500
    after: str = ""


class InstancesResponse(Struct, frozen=True, kw_only=True, gc=False):
    """A page of instances, oldest first, and the host that runs each.

    `total` counts all matching instances, listed or not. These fields extend the contract:

    - `rolling`: the services that are replacing instances.
    - `stopped`: the services whose rollout has stopped before its end, with the reason.
    - `notices`: alerts as sentences, by service or by ``host <name>``.
    - `next`: the `after` of a request for the next page, empty if this is the last one; None from a
      Box that knows no cursor.

    A page that was requested with `after` has no `rolling`, `stopped` and `notices`.
    """

    total: U32
    instances: list[InstanceInfo]
    hosts: dict[str, str]
    error: str | None = None
    rolling: list[str] = field(default_factory=list)
    notices: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    next: str | None = None


HostStats = dict[str, InstanceHealth]
"""The payload of ``box.stats.<host>``: instance id → health."""

T = TypeVar("T")

_MAX_REWRITE: Final = 64 * 1024  # bytes of a message that is read again
_QUOTE: Final = b'"'
_HEALTH: Final = (b'"cpu_percent"', b'"memory_bytes"', b'"inflight_requests"', b'"healthy"')
_REFUSALS: Final = (ValueError, msgspec.MsgspecError, RecursionError, OverflowError)
_CURABLE: Final = re.compile("datetime|RFC3339|truncated|hex escape|utf-16|Recursion|Overflow")
"""What msgspec says of a message that serde_json may take: of a time, half a surrogate pair or deep
nesting.
"""

_ENCODER: Final = msgspec.json.Encoder()
_Canonical = Callable[[Any], Any]
_Doubt = Callable[[Any, bytes], bool]
_Reader = tuple[Callable[[bytes], Any], _Doubt | None, _Canonical | None]
_READERS: Final[dict[Any, _Reader]] = {}
"""By class: what decodes, what says whether a field may stand twice, and what brings the value into
canonical form; the latter two where there are any.
"""


def decode(cls: type[T], data: bytes) -> T:
    """`data` as a `cls`, with times in UTC and floats rounded to f32.

    Raises ProtocolError, naming the field, for anything that serde_json would not take.
    """
    read, doubt, canonical = _READERS.get(cls) or _reader(cls)
    try:
        if not data.isascii():
            data.decode()  # msgspec skips unknown fields unread
        value = read(data)
        if doubt is not None and doubt(value, data) and len(data) <= _MAX_REWRITE:
            value = read(rewrite(cls, data))
        return value if canonical is None else canonical(value)  # type: ignore[no-any-return]
    except _REFUSALS as exc:
        try:
            if len(data) > _MAX_REWRITE or _CURABLE.search(f"{type(exc).__name__}: {exc}") is None:
                raise _refusal(cls, exc) from exc
            value = read(rewrite(cls, data))
            return value if canonical is None else canonical(value)  # type: ignore[no-any-return]
        except _REFUSALS as again:
            clearer = isinstance(again, msgspec.ValidationError)
            raise _refusal(cls, again if clearer else exc) from exc


def _event_doubt(value: InstanceEvent, data: bytes) -> bool:
    """Whether a field may stand twice. A message with each field once, and no other, has so many
    quotation marks.
    """
    return data.count(_QUOTE) != 24 or not (value.message or b'"message"' in data)


def _registration_doubt(value: InstanceRegistration, data: bytes) -> bool:
    known = 18 + 4 * len(value.metadata)
    return data.count(_QUOTE) != known or not (value.metadata or b'"metadata"' in data)


def _deregistration_doubt(value: InstanceDeregistration, data: bytes) -> bool:
    return data.count(_QUOTE) != 12 or not (value.reason or b'"reason"' in data)


def _health_doubt(value: InstanceHealth, data: bytes) -> bool:
    return data.count(_QUOTE) != 8 or b"-0" in data or any(name not in data for name in _HEALTH)


def _always_doubt(value: object, data: bytes) -> bool:
    return True


def _reader(cls: Any) -> _Reader:
    decoder = msgspec.json.Decoder(cls)
    reader = _READERS[cls] = decoder.decode, _DOUBTS.get(cls), _CANONICAL.get(cls)
    return reader


def encode(value: Struct | HostStats) -> bytes:
    """`value` as the UTF-8 JSON that serde_json would write for it.

    Raises ProtocolError for a time without an offset, and for text that is not Unicode. Does not
    check ranges: a value whose fields match their types is always valid.
    """
    canonical = _CANONICAL.get(type(value))
    try:
        if canonical is not None:
            value = canonical(value)
        data = _ENCODER.encode(value)
    except (UnicodeEncodeError, OverflowError) as exc:
        raise _refusal(type(value), exc) from exc
    # msgspec writes six fraction digits where chrono writes three: in one value of a thousand.
    return _ENCODER.encode(_chrono_times(value)) if b'000Z"' in data else data


def now() -> datetime:
    """The wall clock in UTC: for timestamps, never for deadlines."""
    return datetime.now(UTC)


def format_time(value: datetime) -> str:
    """`value` in RFC 3339, in UTC, with 0, 3 or 6 fraction digits, like chrono."""
    value = value.astimezone(UTC).replace(tzinfo=None)
    spec = "microseconds" if value.microsecond % 1000 else "milliseconds"
    return value.isoformat(timespec=spec if value.microsecond else "seconds") + "Z"


def parse_time(text: str) -> datetime:
    """The moment that an RFC 3339 time with an offset names, in UTC. Raises ProtocolError."""
    try:
        return in_utc(msgspec.convert(text, Time))
    except (msgspec.ValidationError, OverflowError):
        try:
            return chrono_time(text)
        except ValueError as exc:
            problem = f"{text[:40]!r} is not RFC 3339 with an offset"
            raise ProtocolError("time", "", problem) from exc


# ── the canonical form: equal values have equal bytes ────────────────────────────────────


def in_utc(value: datetime) -> datetime:
    """The same moment in UTC. Raises ProtocolError for a time without an offset."""
    if value.tzinfo is UTC:
        return value
    if value.tzinfo is None:
        raise ProtocolError("time", "", f"{value.isoformat()} has no offset: use UTC")
    return value.astimezone(UTC)


def _f32(value: float) -> float:
    """The double whose shortest decimal is also the shortest decimal of `value` as an f32."""
    if -1e3 < value < 1e3 and round(value, 3) == value:
        return value  # six significant digits always survive a float (FLT_DIG)
    try:
        single = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")  # as Rust's `as f32`
    for digits in range(6, 10):
        short = float(f"{single:.{digits}g}")
        if struct.unpack("f", struct.pack("f", short))[0] == single:
            return short
    return float(single)


def _health(value: InstanceHealth) -> InstanceHealth:
    cpu = value.cpu_percent
    if cpu is not None and (rounded := _f32(cpu)) != cpu:
        value = replace(value, cpu_percent=rounded)
    if value.memory_bytes is not None and value.memory_bytes > _U64_MAX:
        raise ProtocolError("InstanceHealth", "memory_bytes", "expected `int` <= 2^64 - 1")
    return value


def _info(value: InstanceInfo) -> InstanceInfo:
    created = in_utc(value.created_at)
    ready = None if value.ready_at is None else in_utc(value.ready_at)
    health = _health(value.health)
    if created is value.created_at and ready is value.ready_at and health is value.health:
        return value
    return replace(value, created_at=created, ready_at=ready, health=health)


def _event(value: InstanceEvent) -> InstanceEvent:
    at = value.timestamp
    return value if at.tzinfo is UTC else replace(value, timestamp=in_utc(at))


def _registration(value: InstanceRegistration) -> InstanceRegistration:
    at = value.started_at
    return value if at.tzinfo is UTC else replace(value, started_at=in_utc(at))


def _with_infos(value: Any) -> Any:
    if all(map(_is_canonical, value.instances)):
        return value
    return replace(value, instances=[_info(info) for info in value.instances])


def _is_canonical(info: InstanceInfo) -> bool:
    """Whether `_info` would return the same object, as it nearly always does.

    This check takes a third of the time, and a reply has hundreds of instances.
    """
    health, ready = info.health, info.ready_at
    cpu, memory = health.cpu_percent, health.memory_bytes
    return (
        info.created_at.tzinfo is UTC
        and (ready is None or ready.tzinfo is UTC)
        and (cpu is None or (-1e3 < cpu < 1e3 and round(cpu, 3) == cpu))
        and (memory is None or memory <= _U64_MAX)
    )


def _stats(value: HostStats) -> HostStats:
    return {key: _health(health) for key, health in value.items()}


_CANONICAL: Final[dict[Any, _Canonical]] = {
    InstanceHealth: _health,
    InstanceInfo: _info,
    InstanceEvent: _event,
    InstanceRegistration: _registration,
    ScaleResponse: _with_infos,
    InstancesResponse: _with_infos,
    HostStats: _stats,
    dict: _stats,
}


_DOUBTS: Final[dict[Any, _Doubt]] = {
    InstanceEvent: _event_doubt,
    InstanceRegistration: _registration_doubt,
    InstanceDeregistration: _deregistration_doubt,
    InstanceHealth: _health_doubt,
    ScaleRequest: _always_doubt,
    ScaleConfig: _always_doubt,
}


def _chrono_times(value: Any) -> Any:
    """`value` as plain JSON types, with times in chrono's format."""

    def walk(node: Any) -> Any:
        if isinstance(node, datetime):
            return format_time(node)
        if isinstance(node, dict):
            return {key: walk(item) for key, item in node.items()}
        if isinstance(node, list):
            return [walk(item) for item in node]
        return node

    return walk(msgspec.to_builtins(value, builtin_types=(datetime,)))


# ── refusals ─────────────────────────────────────────────────────────────────────────────

_AT: Final = re.compile(
    r"^(?P<problem>.*?)(?: - at `(?:key in )?\$\.?(?P<path>[^`]*)`)?$", re.DOTALL
)
_MISSING: Final = re.compile(r"^Object missing required field `([^`]+)`$")


def _refusal(cls: Any, exc: Exception) -> ProtocolError:
    name = getattr(cls, "__name__", str(cls))
    if isinstance(exc, UnicodeDecodeError):
        return ProtocolError(name, "", f"not UTF-8 at byte {exc.start}")
    if isinstance(exc, UnicodeEncodeError):
        return ProtocolError(name, "", f"a text has a character that is not Unicode: {exc.reason}")
    if isinstance(exc, RecursionError):
        return ProtocolError(name, "", "nested too deeply")
    if type(exc) is ValueError:
        return ProtocolError(name, "", str(exc))
    if isinstance(exc, OverflowError):
        return ProtocolError(name, "", "a time lies outside the years 1 to 9999")
    if not isinstance(exc, msgspec.ValidationError):
        return ProtocolError(name, "", f"not JSON: {exc}")
    match = _AT.match(str(exc))
    assert match is not None  # the pattern matches any text
    problem, path = match["problem"], match["path"] or ""
    if missing := _MISSING.match(problem):
        return ProtocolError(name, ".".join(filter(None, (path, missing[1]))), "missing")
    return ProtocolError(name, path, problem[:1].lower() + problem[1:])
