"""The cure for each reason of JetStream to refuse a call, by the code of its error."""

from __future__ import annotations

from typing import Final

_ROOM: Final = "or free some: docs/how-to/free-a-full-stream.md"

CURES: Final = {
    10002: f"raise max_file or max_mem of the account, {_ROOM}",
    10005: "no server has room for the stream: add storage, or change its placement",
    10008: "the cluster has no leader now: check `nats server report jetstream`",
    10009: "the cluster has no leader now: check `nats server report jetstream`",
    10023: f"raise max_file_store or max_memory_store of the server, {_ROOM}",
    10026: "raise max_consumers of the stream and of the account",
    10027: "raise max_streams of the account",
    10028: "raise max_memory_store of the server, or max_mem of the account",
    10039: "enable JetStream for this account",
    10047: f"raise max_file_store of the server or max_file of the account, {_ROOM}",
    10074: "set [nats] replicas = 1, or connect to a cluster",
    10076: "start the server with `-js`",
    10077: "raise max_bytes or max_msgs of the stream, or let its events expire earlier: "
    "docs/how-to/free-a-full-stream.md",
    10110: "a purge could remove records of the fleet; let events expire with max_age: "
    "docs/how-to/free-a-full-stream.md",
    10113: "the account demands max_bytes of each stream: create it with one",
    10122: "raise disk_max_stream_bytes or mem_max_stream_bytes of the account",
}
"""What a person changes, by the code."""
