"""What Boxes see of the store: real `FleetView`s and `KeyValueView`s, fed by the simulated bus.

A view gets each bucket's messages in the bucket's order, late, some twice; between buckets there
is no order. One that was cut off starts anew with all that is there. Small fleets have a view for
each Box; in large ones many Boxes share one, as if their messages arrived at the same moments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final, TypeVar, cast

from msgspec import Struct

from bridge.box.fleet.restore import Restorer
from bridge.box.fleet.view import FleetView
from bridge.box.state.records import HostOrder, HostRecord, ServiceRecord, SlotRecord
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.kv_view import KeyValueView, Record
from bridge.errors import BusError, CutOff, NoReply
from bridge.subjects import Subjects, parse_slot_key
from tests.sim.kernel import Kernel, Process, Resume, suspend
from tests.sim.store import Bucket

REPLY_TIMEOUT: Final = 5.0  # seconds: `bridge.bus.jetstream.publish.store`
HEARTBEAT: Final = 3.0  # seconds: `bridge.settings.Timing`
_TICK: Final = 0.5  # seconds: `bridge.box.daemon`

T = TypeVar("T", bound=Struct)


class Link(Process):
    """A process with a connection to the store, which may stand or not.

    `reachable` says how it is, `connected` what the process has noticed; `epoch` counts the
    times that it broke.
    """

    def __init__(self, name: str, host_id: str) -> None:
        super().__init__(name)
        self.host_id = host_id
        self.reachable = True
        self.connected = True
        self.epoch = 0


class Bus:
    """Requests to the store: late, lost on the way, or done with the answer lost."""

    def __init__(self, kernel: Kernel, loss: float, slowest: float) -> None:
        self._kernel = kernel
        self.loss = loss
        self._slowest = slowest
        self.down_until = 0.0

    def delay(self) -> float:
        """How long one message takes, in seconds."""
        return self._kernel.delay(0.0005, self._slowest)

    def lost(self) -> bool:
        """Whether a message is lost."""
        return self.loss > 0 and self._kernel.random.random() < self.loss

    async def request(
        self, what: str, act: Callable[[], Any], timeout: float = REPLY_TIMEOUT
    ) -> Any:
        """What `act` gives at the store, for the process that runs now. Raises what it raises,
        CutOff (not sent) and NoReply (the outcome is unknown).
        """
        link = self._kernel.current
        assert isinstance(link, Link)
        if not link.connected:
            raise CutOff(0.0)
        return await suspend(self._sending(link, what, act, timeout))

    def _sending(
        self, link: Link, what: str, act: Callable[[], Any], timeout: float
    ) -> Callable[[Resume], None]:
        kernel, epoch, since = self._kernel, link.epoch, self._kernel.now

        def arm(resume: Resume) -> None:
            def silence() -> None:
                left = max(0.0, since + timeout - kernel.now)
                kernel.after(left, lambda: resume(error=NoReply(what, timeout)))

            def answer(result: Any, error: BusError | None) -> None:
                if link.epoch != epoch or not link.reachable:
                    silence()
                else:
                    resume(result, error)

            def arrive() -> None:
                if kernel.now < self.down_until:
                    silence()
                    return
                result, error = None, None
                try:
                    result = act()
                except BusError as exc:
                    error = exc
                if self.lost():
                    silence()
                else:
                    kernel.after(self.delay(), lambda: answer(result, error))

            if not link.reachable or self.lost():
                silence()
            else:
                kernel.after(self.delay(), arrive)

        return arm


class SimulatedBucketView(KeyValueView[T]):
    """The real view of a bucket; its writes go over the simulated bus."""

    def __init__(self, view: View, bucket: Bucket, cls: type[T], **callbacks: Any) -> None:
        super().__init__(view.connection, bucket.name, cls, **callbacks)
        self._of = view
        self._there = bucket

    async def _write(
        self, key: str, data: bytes, headers: dict[str, str], timeout: float = REPLY_TIMEOUT
    ) -> int:
        kernel, bucket = self._of.kernel, self._there
        link = kernel.current
        assert isinstance(link, Link)
        writer, losses = (link.name, link.host_id), bucket.losses

        def write() -> int:
            return bucket.write(key, data, headers, kernel.now, writer)

        seq = await self._of.bus.request(f"{bucket.name} {key}", write, timeout)
        if self._of.owner is None and bucket.losses != losses:
            # A Box that was frozen would bring it into a view that started over without it.
            # A Box's own view starts over after the Box has read what came before.
            raise NoReply(key, timeout)
        return cast(int, seq)

    async def read(self, key: str) -> Record[T] | None:
        kernel, bucket = self._of.kernel, self._there
        return cast(
            "Record[T] | None",
            await self._of.bus.request(key, lambda: bucket.read(key, kernel.now)),
        )

    async def wait_for(self, seq: int, deadline: float = float("inf")) -> None:
        view = self._view
        while view is self._view and view.seq < seq:
            if self._of.kernel.now >= deadline:
                raise TimeoutError
            await self._of.kernel.sleep(0.05)

    async def wait_live(self) -> None:
        while not self.live:
            await self._of.kernel.sleep(0.1)


class Kept:
    """The part of a journal that the restorer needs; it outlives the process."""

    def __init__(self) -> None:
        self.services: dict[str, ServiceRecord] = {}
        self.orders: dict[str, HostOrder] = {}

    def keep_service(self, name: str, record: ServiceRecord) -> None:
        known = self.services.get(name)
        if known is None or known.version < record.version:
            self.services[name] = record

    def keep_order(self, host: str, order: HostOrder) -> None:
        known = self.orders.get(host)
        if known is None or known.version < order.version:
            self.orders[host] = order


class View:
    """See the module. `owner` is the process that the view is in, None if many share it.

    `moved` are the hosts and slots, by service, whose claims changed since somebody looked, if many
    share the view. `on_loss` is called when the store has lost something.
    """

    def __init__(
        self,
        kernel: Kernel,
        bus: Bus,
        buckets: Mapping[str, Bucket],
        lease: float,
        kept: Kept,
        owner: Link | None,
        on_loss: Callable[[], None],
    ) -> None:
        self.kernel = kernel
        self.bus = bus
        self.owner = owner
        self.restoring = False
        self.moved: dict[str, set[tuple[str, int]]] = {}
        self.connection = cast(
            Connection,
            SimpleNamespace(
                subjects=Subjects(), metrics=SimpleNamespace(refuse=self._must_not_refuse)
            ),
        )
        fleet = FleetView(self.connection, lease, kernel.monotonic)
        fleet.services = SimulatedBucketView(
            self,
            buckets["services"],
            ServiceRecord,
            on_change=fleet._service_changed,
            on_live=fleet._services_live,
        )
        fleet.slots = SimulatedBucketView(
            self,
            buckets["slots"],
            SlotRecord,
            on_change=self._slot_changed,
            on_live=fleet._slots_live,
        )
        fleet.hosts = SimulatedBucketView(
            self,
            buckets["hosts"],
            HostRecord,
            on_change=fleet._host_changed,
            on_live=fleet._hosts_live,
        )
        fleet.orders = SimulatedBucketView(
            self, buckets["admin"], HostOrder, on_change=fleet._order_changed
        )
        self.fleet = fleet
        self.kept = kept
        self.restorer = Restorer(fleet, cast(Any, kept), HEARTBEAT, on_loss)
        fleet.subscribe(self.restorer)
        self._feeds = [
            _Feed(self, buckets[name], records)
            for name, records in zip(
                ("services", "slots", "hosts", "admin"), fleet.views, strict=True
            )
        ]
        self.closed = False
        self._tick()

    def notice(self, bucket: str) -> None:
        """Something was written to `bucket`."""
        for feed in self._feeds:
            if feed.bucket.name == bucket:
                feed.notice()

    def resync(self) -> None:
        """The connection is back: everything is sent again."""
        for feed in self._feeds:
            feed.resync()

    def lost(self) -> None:
        """Nothing comes any more."""
        for feed in self._feeds:
            feed.lost()

    def close(self) -> None:
        """The process has ended."""
        self.closed = True
        self.lost()

    def _tick(self) -> None:
        if self.closed:
            return
        self.fleet.tick()
        self.kernel.after(_TICK, lambda: self.act(self._tick))

    def _slot_changed(self, key: str, old: SlotRecord | None, new: SlotRecord | None) -> None:
        if self.owner is None:
            service, slot = parse_slot_key(key)
            moved = self.moved.setdefault(service, set())
            moved.update((claim.host, slot) for claim in (old, new) if claim is not None)
        self.fleet._slot_changed(key, old, new)

    def act(self, call: Callable[[], None]) -> None:
        """Call `call` in the process that the view is in."""
        if self.owner is None:
            call()
        else:
            self.kernel.act(self.owner, call)

    @staticmethod
    def _must_not_refuse(where: str, reason: str) -> None:
        raise AssertionError(f"refused at {where}: {reason}")


class _Feed:
    """The messages of one bucket on their way into one view."""

    def __init__(self, view: View, bucket: Bucket, records: KeyValueView[Any]) -> None:
        self._view = view
        self.bucket = bucket
        self._records = records
        self._position = 0
        self._run = 0
        self._on = False
        self._due = False

    def notice(self) -> None:
        if self._on and not self._due:
            self._due, run = True, self._run
            self._later(lambda: self._deliver(run))

    def resync(self) -> None:
        self._run += 1
        self._on, run = False, self._run
        self._later(lambda: self._begin(run))

    def lost(self) -> None:
        self._run += 1
        self._on = self._due = False
        self._records.lost()

    def _later(self, call: Callable[[], None]) -> None:
        self._view.kernel.after(self._view.bus.delay(), lambda: self._view.act(call))

    def _begin(self, run: int) -> None:
        if run != self._run:
            return
        records = self._records
        records.begin()
        for entry in self.bucket.snapshot(self._view.kernel.now):
            records.put_in(entry.key, entry.value, entry.seq)
        self._position = len(self.bucket.log)
        records.complete(self.bucket.seq)
        self._on, self._due = True, False

    def _deliver(self, run: int) -> None:
        owner = self._view.owner
        if run != self._run or (owner is not None and not owner.reachable):
            return
        self._due = False
        chance, log = self._view.kernel.random, self.bucket.log
        new = len(log) - self._position
        upto = self._position + (new if chance.random() < 0.7 else chance.randint(1, new))
        if self._position and chance.random() < 0.05:
            self._position -= 1  # the last one comes again
        for entry in log[self._position : upto]:
            self._records.put_in(entry.key, entry.value, entry.seq)
        self._position = upto
        if upto < len(log):
            self.notice()
