"""A consumer that reports each failed instance, and continues after a restart where it ended."""

import asyncio

from bridge import DurableEvents, InstanceState, Reset, ScaleClient


async def main() -> None:
    async with (
        ScaleClient.connect() as client,
        DurableEvents.open(
            client.connection, "alerts", states=[InstanceState.FAILED]
        ) as deliveries,
    ):
        async for delivery in deliveries:
            if isinstance(delivery, Reset):
                print("events are missing:", delivery.reason, flush=True)
                continue
            event = delivery.event
            print(f"{event.instance_id} failed: {event.message}", flush=True)
            await delivery.ack()  # a kill before this line repeats the event, and loses none


asyncio.run(main())
