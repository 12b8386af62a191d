"""box-bridge: scale, watch and route the instances that Boxes run, over NATS.

The names below are the public interface; whatever else a module holds may change. Those that need
NATS are imported when first used, so that `import bridge` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bridge.errors import BridgeError, ConnectFailed, CutOff, ProtocolError
from bridge.gateway.errors import (
    DrainStuck,
    DrainTimeout,
    NoBoxError,
    NoRoute,
    OrderRefused,
    RequestTimeout,
    ScaleCapped,
    ScaleError,
    ScaleRefused,
    WaitTimeout,
)
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceHealth,
    InstanceInfo,
    InstanceRegistration,
    InstanceState,
    ScaleConfig,
    ScaleRequest,
    ScaleResponse,
    decode,
    encode,
)

if TYPE_CHECKING:
    from bridge.bus.core.connection import Connection
    from bridge.bus.jetstream.follower import Checkpoint, Reset, Start
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.events.durable import Delivery, DurableEvents
    from bridge.gateway.events.hub import EventHub
    from bridge.gateway.events.stream import EventStream, Gap
    from bridge.gateway.operator import Operator
    from bridge.gateway.relay.relay import Relay, RelayConfig
    from bridge.gateway.routes.index import Delete, Put, Resync, Route
    from bridge.gateway.routes.table import RouteTable
    from bridge.instance.registration import Registration, register

__all__ = [
    "BridgeError",
    "Checkpoint",
    "ConnectFailed",
    "Connection",
    "CutOff",
    "Delete",
    "Delivery",
    "DrainStuck",
    "DrainTimeout",
    "DurableEvents",
    "EventHub",
    "EventStream",
    "Gap",
    "InstanceDeregistration",
    "InstanceEvent",
    "InstanceHealth",
    "InstanceInfo",
    "InstanceRegistration",
    "InstanceState",
    "NoBoxError",
    "NoRoute",
    "Operator",
    "OrderRefused",
    "ProtocolError",
    "Put",
    "Registration",
    "Relay",
    "RelayConfig",
    "RequestTimeout",
    "Reset",
    "Resync",
    "Route",
    "RouteTable",
    "ScaleCapped",
    "ScaleClient",
    "ScaleConfig",
    "ScaleError",
    "ScaleRefused",
    "ScaleRequest",
    "ScaleResponse",
    "Start",
    "WaitTimeout",
    "decode",
    "encode",
    "register",
]

_LAZY = {
    "Checkpoint": "bridge.bus.jetstream.follower",
    "Connection": "bridge.bus.core.connection",
    "Delete": "bridge.gateway.routes.index",
    "Delivery": "bridge.gateway.events.durable",
    "DurableEvents": "bridge.gateway.events.durable",
    "EventHub": "bridge.gateway.events.hub",
    "EventStream": "bridge.gateway.events.stream",
    "Gap": "bridge.gateway.events.stream",
    "Operator": "bridge.gateway.operator",
    "Put": "bridge.gateway.routes.index",
    "Registration": "bridge.instance.registration",
    "Relay": "bridge.gateway.relay.relay",
    "RelayConfig": "bridge.gateway.relay.relay",
    "Reset": "bridge.bus.jetstream.follower",
    "Resync": "bridge.gateway.routes.index",
    "Route": "bridge.gateway.routes.index",
    "RouteTable": "bridge.gateway.routes.table",
    "ScaleClient": "bridge.gateway.client",
    "Start": "bridge.bus.jetstream.follower",
    "register": "bridge.instance.registration",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bridge' has no attribute {name!r}")
