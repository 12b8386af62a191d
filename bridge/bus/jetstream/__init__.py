"""JetStream: streams and buckets, created, written to, followed and read under durable names.

Each write ends in an acknowledgement or in an error that states whether anything was stored. Each
reader resyncs by itself and reports what it missed.
"""

from bridge.bus.jetstream.ack_subject import AckSubject
from bridge.bus.jetstream.dead_letters import WINDOW, ensure_dead_stream
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.kv_view import KeyValueView, Record
from bridge.bus.jetstream.publish import OutgoingMessage, store
from bridge.bus.jetstream.publisher import LIMIT, Publisher
from bridge.bus.jetstream.pull_consumer import LOOK, PullConsumer, PullHandler, outstanding
from bridge.bus.jetstream.server_time import server_time
from bridge.bus.jetstream.start_position import Begin, Checkpoint, Reset, Start

__all__ = [
    "LIMIT",
    "LOOK",
    "WINDOW",
    "AckSubject",
    "Begin",
    "Checkpoint",
    "Follower",
    "KeyValueView",
    "OutgoingMessage",
    "Publisher",
    "PullConsumer",
    "PullHandler",
    "Record",
    "Reset",
    "Start",
    "ensure_dead_stream",
    "outstanding",
    "server_time",
    "store",
]
