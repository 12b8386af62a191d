"""The types of the payloads, and the ranges of their fields."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from typing import Annotated, Final, Self

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from bridge.protocol.times import Time

U8 = Annotated[int, Meta(ge=0, le=2**8 - 1)]
U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U64 = Annotated[int, Meta(ge=0)]  # msgspec takes no bound above int64; `canonical` checks it

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1


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
    - `target`, `revision`, `ranks`: of the service that was asked for, the rank of each listed
      instance that has one by id. Without a name, and for a service that no live Box offers and
      that was never scaled, `target` is None.

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
    target: U32 | None = None
    revision: int = 0
    ranks: dict[str, U32] = field(default_factory=dict)


HostStats = dict[str, InstanceHealth]
"""The payload of ``box.stats.<host>``: instance id → health."""
