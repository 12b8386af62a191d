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
    from bridge.log_protocol import LogChunk as LogChunk
    from bridge.log_protocol import LoggedInstance as LoggedInstance
    from bridge.log_protocol import LogRead as LogRead
    from bridge.log_protocol import LogsRequest as LogsRequest
    from bridge.log_protocol import LogsResponse as LogsResponse
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

_NAMES_OF: Final = {
    "bridge.admin_protocol": (
        "AdminResponse Candidate Entry FailedSlot Fate HistoryResponse Host HostsResponse "
        "Move Order PlanResponse PlannedSlot Service ServicesResponse"
    ),
    "bridge.bus.core.connection": "Connection Watcher",
    "bridge.bus.core.listener": "Listener",
    "bridge.bus.core.message": "Handler Message",
    "bridge.bus.core.pending_request": "PendingRequest",
    "bridge.bus.jetstream.start_position": "Begin Checkpoint Reset Start",
    "bridge.errors": (
        "BridgeError BusError ConfigError Conflict ConnectFailed CutOff DurableMismatch "
        "InvalidMessage NameRefused NoReply NoResponders NotPermitted ProtocolError "
        "ServerNotStarted ServerTooOld StoreRefused StoreUnsuitable TooLarge TopologyMismatch"
    ),
    "bridge.gateway.client": "ScaleClient",
    "bridge.gateway.errors": (
        "DrainStuck DrainTimeout NoBoxError NoRoute OrderRefused RequestTimeout ScaleCapped "
        "ScaleError ScaleRefused WaitTimeout"
    ),
    "bridge.gateway.events.durable": "Delivery DurableEvents",
    "bridge.gateway.events.hub": "EventHub HubEvents",
    "bridge.gateway.events.stream": "EventStream Gap",
    "bridge.gateway.operator": "Operator",
    "bridge.gateway.relay.delivery_queue": "Backoff",
    "bridge.gateway.relay.relay": "Counts Notice Relay RelayConfig",
    "bridge.gateway.routes.index": "Change Delete Put Resync Route",
    "bridge.gateway.routes.table": "Changes RouteTable",
    "bridge.instance.registration": "Registration register",
    "bridge.log_protocol": "LogChunk LogRead LoggedInstance LogsRequest LogsResponse",
    "bridge.observe": "Metrics",
    "bridge.protocol": (
        "InstanceDeregistration InstanceEvent InstanceHealth InstanceInfo "
        "InstanceRegistration InstanceState InstancesResponse ScaleConfig ScaleRequest "
        "ScaleResponse decode encode"
    ),
    "bridge.settings": "NatsConfig Timing",
    "bridge.subjects": "Subjects",
}
"""The public names by the module that defines them: the one list of them."""

_MODULE_OF: Final = dict(
    sorted((name, module) for module, names in _NAMES_OF.items() for name in names.split())
)

__all__ = [*_MODULE_OF]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'bridge' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
