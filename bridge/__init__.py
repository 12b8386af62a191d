"""box-bridge: scale, watch and route the instances that Boxes run, over NATS.

The names below are the public interface; whatever else a module holds may change. Each name is
imported when it is first used: `import bridge` itself imports nothing, and only the names that
need NATS import NATS.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from bridge.admin_protocol import AdminResponse as AdminResponse
    from bridge.admin_protocol import Candidate as Candidate
    from bridge.admin_protocol import Entry as Entry
    from bridge.admin_protocol import FailedSlot as FailedSlot
    from bridge.admin_protocol import Fate as Fate
    from bridge.admin_protocol import HistoryResponse as HistoryResponse
    from bridge.admin_protocol import Host as Host
    from bridge.admin_protocol import HostsResponse as HostsResponse
    from bridge.admin_protocol import Move as Move
    from bridge.admin_protocol import Order as Order
    from bridge.admin_protocol import PlannedSlot as PlannedSlot
    from bridge.admin_protocol import PlanResponse as PlanResponse
    from bridge.admin_protocol import Service as Service
    from bridge.admin_protocol import ServicesResponse as ServicesResponse
    from bridge.bus.core.connection import Connection as Connection
    from bridge.bus.core.connection import Watcher as Watcher
    from bridge.bus.core.listener import Listener as Listener
    from bridge.bus.core.message import Handler as Handler
    from bridge.bus.core.message import Message as Message
    from bridge.bus.core.pending_request import PendingRequest as PendingRequest
    from bridge.bus.jetstream.start_position import Begin as Begin
    from bridge.bus.jetstream.start_position import Checkpoint as Checkpoint
    from bridge.bus.jetstream.start_position import Reset as Reset
    from bridge.bus.jetstream.start_position import Start as Start
    from bridge.errors import BridgeError as BridgeError
    from bridge.errors import BusError as BusError
    from bridge.errors import ConfigError as ConfigError
    from bridge.errors import Conflict as Conflict
    from bridge.errors import ConnectFailed as ConnectFailed
    from bridge.errors import CutOff as CutOff
    from bridge.errors import DurableMismatch as DurableMismatch
    from bridge.errors import InvalidMessage as InvalidMessage
    from bridge.errors import NameRefused as NameRefused
    from bridge.errors import NoReply as NoReply
    from bridge.errors import NoResponders as NoResponders
    from bridge.errors import NotPermitted as NotPermitted
    from bridge.errors import ProtocolError as ProtocolError
    from bridge.errors import ServerNotStarted as ServerNotStarted
    from bridge.errors import ServerTooOld as ServerTooOld
    from bridge.errors import StoreRefused as StoreRefused
    from bridge.errors import StoreUnsuitable as StoreUnsuitable
    from bridge.errors import TooLarge as TooLarge
    from bridge.errors import TopologyMismatch as TopologyMismatch
    from bridge.gateway.client import ScaleClient as ScaleClient
    from bridge.gateway.errors import DrainStuck as DrainStuck
    from bridge.gateway.errors import DrainTimeout as DrainTimeout
    from bridge.gateway.errors import NoBoxError as NoBoxError
    from bridge.gateway.errors import NoRoute as NoRoute
    from bridge.gateway.errors import OrderRefused as OrderRefused
    from bridge.gateway.errors import RequestTimeout as RequestTimeout
    from bridge.gateway.errors import ScaleCapped as ScaleCapped
    from bridge.gateway.errors import ScaleError as ScaleError
    from bridge.gateway.errors import ScaleRefused as ScaleRefused
    from bridge.gateway.errors import WaitTimeout as WaitTimeout
    from bridge.gateway.events.durable import Delivery as Delivery
    from bridge.gateway.events.durable import DurableEvents as DurableEvents
    from bridge.gateway.events.hub import EventHub as EventHub
    from bridge.gateway.events.hub import HubEvents as HubEvents
    from bridge.gateway.events.stream import EventStream as EventStream
    from bridge.gateway.events.stream import Gap as Gap
    from bridge.gateway.operator import Operator as Operator
    from bridge.gateway.relay.delivery_queue import Backoff as Backoff
    from bridge.gateway.relay.relay import Counts as Counts
    from bridge.gateway.relay.relay import Notice as Notice
    from bridge.gateway.relay.relay import Relay as Relay
    from bridge.gateway.relay.relay import RelayConfig as RelayConfig
    from bridge.gateway.routes.index import Change as Change
    from bridge.gateway.routes.index import Delete as Delete
    from bridge.gateway.routes.index import Put as Put
    from bridge.gateway.routes.index import Resync as Resync
    from bridge.gateway.routes.index import Route as Route
    from bridge.gateway.routes.table import Changes as Changes
    from bridge.gateway.routes.table import RouteTable as RouteTable
    from bridge.instance.registration import Registration as Registration
    from bridge.instance.registration import register as register
    from bridge.observe import Metrics as Metrics
    from bridge.protocol import InstanceDeregistration as InstanceDeregistration
    from bridge.protocol import InstanceEvent as InstanceEvent
    from bridge.protocol import InstanceHealth as InstanceHealth
    from bridge.protocol import InstanceInfo as InstanceInfo
    from bridge.protocol import InstanceRegistration as InstanceRegistration
    from bridge.protocol import InstancesResponse as InstancesResponse
    from bridge.protocol import InstanceState as InstanceState
    from bridge.protocol import ScaleConfig as ScaleConfig
    from bridge.protocol import ScaleRequest as ScaleRequest
    from bridge.protocol import ScaleResponse as ScaleResponse
    from bridge.protocol import decode as decode
    from bridge.protocol import encode as encode
    from bridge.settings import NatsConfig as NatsConfig
    from bridge.settings import Timing as Timing
    from bridge.subjects import Subjects as Subjects

_MODULE_OF: Final = {
    "AdminResponse": "bridge.admin_protocol",
    "Backoff": "bridge.gateway.relay.delivery_queue",
    "Begin": "bridge.bus.jetstream.start_position",
    "BridgeError": "bridge.errors",
    "BusError": "bridge.errors",
    "Candidate": "bridge.admin_protocol",
    "Change": "bridge.gateway.routes.index",
    "Changes": "bridge.gateway.routes.table",
    "Checkpoint": "bridge.bus.jetstream.start_position",
    "ConfigError": "bridge.errors",
    "Conflict": "bridge.errors",
    "ConnectFailed": "bridge.errors",
    "Connection": "bridge.bus.core.connection",
    "Counts": "bridge.gateway.relay.relay",
    "CutOff": "bridge.errors",
    "Delete": "bridge.gateway.routes.index",
    "Delivery": "bridge.gateway.events.durable",
    "DrainStuck": "bridge.gateway.errors",
    "DrainTimeout": "bridge.gateway.errors",
    "DurableEvents": "bridge.gateway.events.durable",
    "DurableMismatch": "bridge.errors",
    "Entry": "bridge.admin_protocol",
    "EventHub": "bridge.gateway.events.hub",
    "EventStream": "bridge.gateway.events.stream",
    "FailedSlot": "bridge.admin_protocol",
    "Fate": "bridge.admin_protocol",
    "Gap": "bridge.gateway.events.stream",
    "Handler": "bridge.bus.core.message",
    "HistoryResponse": "bridge.admin_protocol",
    "Host": "bridge.admin_protocol",
    "HostsResponse": "bridge.admin_protocol",
    "HubEvents": "bridge.gateway.events.hub",
    "InstanceDeregistration": "bridge.protocol",
    "InstanceEvent": "bridge.protocol",
    "InstanceHealth": "bridge.protocol",
    "InstanceInfo": "bridge.protocol",
    "InstanceRegistration": "bridge.protocol",
    "InstanceState": "bridge.protocol",
    "InstancesResponse": "bridge.protocol",
    "InvalidMessage": "bridge.errors",
    "Listener": "bridge.bus.core.listener",
    "Message": "bridge.bus.core.message",
    "Metrics": "bridge.observe",
    "Move": "bridge.admin_protocol",
    "NameRefused": "bridge.errors",
    "NatsConfig": "bridge.settings",
    "NoBoxError": "bridge.gateway.errors",
    "NoReply": "bridge.errors",
    "NoResponders": "bridge.errors",
    "NoRoute": "bridge.gateway.errors",
    "NotPermitted": "bridge.errors",
    "Notice": "bridge.gateway.relay.relay",
    "Operator": "bridge.gateway.operator",
    "Order": "bridge.admin_protocol",
    "OrderRefused": "bridge.gateway.errors",
    "PendingRequest": "bridge.bus.core.pending_request",
    "PlanResponse": "bridge.admin_protocol",
    "PlannedSlot": "bridge.admin_protocol",
    "ProtocolError": "bridge.errors",
    "Put": "bridge.gateway.routes.index",
    "Registration": "bridge.instance.registration",
    "Relay": "bridge.gateway.relay.relay",
    "RelayConfig": "bridge.gateway.relay.relay",
    "RequestTimeout": "bridge.gateway.errors",
    "Reset": "bridge.bus.jetstream.start_position",
    "Resync": "bridge.gateway.routes.index",
    "Route": "bridge.gateway.routes.index",
    "RouteTable": "bridge.gateway.routes.table",
    "ScaleCapped": "bridge.gateway.errors",
    "ScaleClient": "bridge.gateway.client",
    "ScaleConfig": "bridge.protocol",
    "ScaleError": "bridge.gateway.errors",
    "ScaleRefused": "bridge.gateway.errors",
    "ScaleRequest": "bridge.protocol",
    "ScaleResponse": "bridge.protocol",
    "ServerNotStarted": "bridge.errors",
    "ServerTooOld": "bridge.errors",
    "Service": "bridge.admin_protocol",
    "ServicesResponse": "bridge.admin_protocol",
    "Start": "bridge.bus.jetstream.start_position",
    "StoreRefused": "bridge.errors",
    "StoreUnsuitable": "bridge.errors",
    "Subjects": "bridge.subjects",
    "Timing": "bridge.settings",
    "TooLarge": "bridge.errors",
    "TopologyMismatch": "bridge.errors",
    "WaitTimeout": "bridge.gateway.errors",
    "Watcher": "bridge.bus.core.connection",
    "decode": "bridge.protocol",
    "encode": "bridge.protocol",
    "register": "bridge.instance.registration",
}
"""The module that defines each public name: the one list of them."""

__all__ = [*_MODULE_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
