"""The replies to `nats micro ls|info|stats` about a service (NATS ADR-32)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct, field

from bridge.protocol import encode

_TYPE: Final = "io.nats.micro.v1."


class EndpointInfo(Struct, frozen=True, kw_only=True):
    """An endpoint in a reply to INFO."""

    name: str
    subject: str
    queue_group: str
    metadata: dict[str, str] = field(default_factory=dict)


class EndpointStats(Struct, frozen=True, kw_only=True):
    """An endpoint in a reply to STATS; times are in nanoseconds."""

    name: str
    subject: str
    queue_group: str
    num_requests: int
    num_errors: int
    last_error: str
    processing_time: int
    average_processing_time: int
    data: dict[str, int]


class _Identity(Struct, frozen=True):
    type: str
    name: str
    id: str
    version: str
    metadata: dict[str, str]


class _Info(_Identity, frozen=True):
    description: str
    endpoints: list[EndpointInfo]


class _Stats(_Identity, frozen=True):
    started: str
    endpoints: list[EndpointStats]


class Description(Struct, frozen=True, kw_only=True):
    """The identity of a service; `started` is RFC 3339, `metadata` never null."""

    name: str
    id: str
    version: str
    description: str
    started: str
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def subjects(self) -> tuple[str, str, str]:
        """The subjects of the three verbs: for all services, by name and by id."""
        return "$SRV.*", f"$SRV.*.{self.name}", f"$SRV.*.{self.name}.{self.id}"

    def answer(
        self,
        verb: str,
        endpoints: Callable[[], list[EndpointInfo]],
        stats: Callable[[], list[EndpointStats]],
    ) -> bytes | None:
        """The reply to PING, INFO or STATS; None for any other verb."""
        of = (self.name, self.id, self.version, self.metadata)
        match verb:
            case "PING":
                return encode(_Identity(_TYPE + "ping_response", *of))
            case "INFO":
                return encode(_Info(_TYPE + "info_response", *of, self.description, endpoints()))
            case "STATS":
                return encode(_Stats(_TYPE + "stats_response", *of, self.started, stats()))
        return None
