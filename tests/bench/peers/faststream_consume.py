"""FastStream at reading events, decoded into a model, as its documentation shows it.

Told by lines of JSON on stdin: first the server, the stream and how many events; then an empty line
for each round, which is answered with the seconds that it took. The server pushes the events to a
plain subject, so that FastStream has neither acknowledgements nor pulls to do.
"""

import asyncio
import json
import sys
import time

from faststream.nats import NatsBroker
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from pydantic import BaseModel


class Event(BaseModel):
    instance_id: str
    service: str
    from_state: str
    to_state: str
    timestamp: str
    message: str = ""


async def read(url: str, stream: str, count: int, number: int) -> float:
    broker, inbox, left = NatsBroker(url, logger=None), f"bench.inbox.{stream}.{number}", count
    done = asyncio.Event()

    @broker.subscriber(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    async def handle(event: Event) -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set()

    async with broker:
        await broker.start()
        start = time.perf_counter()
        await broker._connection.jetstream().add_consumer(
            stream,
            ConsumerConfig(
                deliver_subject=inbox,
                deliver_policy=DeliverPolicy.ALL,
                ack_policy=AckPolicy.NONE,
                mem_storage=True,
                inactive_threshold=10.0,
            ),
        )
        await done.wait()
        return time.perf_counter() - start


def main() -> None:
    told, number = json.loads(sys.stdin.readline()), 0
    while sys.stdin.readline():
        number += 1
        print(asyncio.run(read(told["url"], told["stream"], told["count"], number)), flush=True)


main()
