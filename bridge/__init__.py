"""box-bridge: scale, watch and route the instances that Boxes run, over NATS.

The names below are the public interface; whatever else a module holds may change. Those that need
NATS are imported when first used, so that `import bridge` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bridge.errors import (
    BridgeError,
    ConnectFailed,
    CutOff,
    DrainStuck,
    DrainTimeout,
    NoBoxError,
    OrderRefused,
    ProtocolError,
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
    from bridge.bus.connection import Connection
    from bridge.gateway.client import ScaleClient
    from bridge.gateway.events import EventStream, Gap
    from bridge.gateway.operator import Operator

__all__ = [
    "BridgeError",
    "ConnectFailed",
    "Connection",
    "CutOff",
    "DrainStuck",
    "DrainTimeout",
    "EventStream",
    "Gap",
    "InstanceDeregistration",
    "InstanceEvent",
    "InstanceHealth",
    "InstanceInfo",
    "InstanceRegistration",
    "InstanceState",
    "NoBoxError",
    "Operator",
    "OrderRefused",
    "ProtocolError",
    "RequestTimeout",
    "ScaleCapped",
    "ScaleClient",
    "ScaleConfig",
    "ScaleError",
    "ScaleRefused",
    "ScaleRequest",
    "ScaleResponse",
    "WaitTimeout",
    "decode",
    "encode",
]

_LAZY = {
    "Connection": "bridge.bus.connection",
    "EventStream": "bridge.gateway.events",
    "Gap": "bridge.gateway.events",
    "Operator": "bridge.gateway.operator",
    "ScaleClient": "bridge.gateway.client",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'bridge' has no attribute {name!r}")
