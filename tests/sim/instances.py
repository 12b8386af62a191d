"""Instances of a simulated host: they take their time, may fail, drain, and report to their slots.

`SlotInstance` mirrors `LocalSlot` with its `Instance` and `InstancePublication`: `live` is
`Instance.run` with `Supervisor._live`, `tell` is `InstancePublication._write_slot`, `sync` is its
`_sync` and `reassert` its `reassert`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bridge.box.runner.local_slots import backoff
from bridge.box.runner.publication import SlotFacts, is_as_written, slot_facts
from bridge.box.state import lifecycle
from bridge.box.state.lifecycle import ENDED, SERVING, Life
from bridge.box.state.records import Demand, SlotRecord
from bridge.bus.jetstream.kv_view import Record
from bridge.errors import BusError, Conflict
from bridge.protocol import InstanceState
from bridge.settings import Timing
from bridge.subjects import slot_key
from tests.sim.kernel import Kernel, Resume, suspend

if TYPE_CHECKING:
    from tests.sim.box import BoxLife

_S = InstanceState
TIMING: Final = Timing()
_RETRY: Final = 0.2  # seconds: `InstancePublication._write_slot`


class Times:
    """How long things take, in seconds."""

    def __init__(self, kernel: Kernel, private: bool) -> None:
        self._kernel = kernel
        self._private = private

    def create(self) -> float:
        return self._kernel.delay(0.01, 1.0)

    def boot(self) -> float:
        return self._kernel.delay(0.1, 5.0)

    def drain(self) -> float:
        return self._kernel.delay(0.1, 5.0)

    def think(self) -> float:
        """Until a Box gets round to planning."""
        return self._kernel.delay(0.001, 0.3) if self._private else 0.5


class SlotInstance:
    """What a host has in a slot, in one life of its Box. See the module."""

    def __init__(
        self, slot: int, config: str, demand: Demand, life: Life, *, failures: int = 0
    ) -> None:
        self.slot = slot
        self.config = config
        self.demand = demand
        self.life = life
        self.failures = failures
        self.retry_at = 0.0
        self.ended = self.settled = self.leaving = self.crashed = self.counted = False
        self.owned = True
        self.told: SlotFacts | None = None
        self.synced = False
        self.revision = 0
        self._serving_since = float("inf")
        self._telling = False
        self._wake: Resume | None = None
        self._settled: Resume | None = None

    @property
    def id(self) -> str:
        return self.life.info.id

    @property
    def service(self) -> str:
        return self.life.info.service

    def claimed(self, claim: Record[SlotRecord]) -> None:
        """Its record is there already, and says what it is."""
        self.revision, self.synced = claim.revision, True
        self.told = slot_facts(claim.value.info)

    def again(self) -> SlotInstance:
        """The same instance in the next life of its Box, as the journal has it."""
        held = SlotInstance(self.slot, self.config, self.demand, self.life, failures=self.failures)
        held.leaving = self.leaving
        held.counted, held.retry_at = self.counted, self.retry_at
        held._serving_since = self._serving_since
        return held

    def wake(self) -> None:
        """It is to leave, or has ended by itself."""
        if self._wake is not None:
            resume, self._wake = self._wake, None
            resume()

    # ── its life ─────────────────────────────────────────────────────────────────────────

    async def live(self, box: BoxLife) -> None:
        """From where it is to the end, and until all know."""
        self.stir(box)
        if self.life.info.state not in ENDED:
            await self._run(box)
        self.ended = True
        if self.life.info.state is _S.FAILED:
            if not self.counted:
                served = box.kernel.now - self._serving_since >= TIMING.backoff_reset
                self.failures = 1 if served else self.failures + 1
                self.retry_at = box.kernel.now + backoff(self.failures, TIMING)
                self.counted = True
                if self.life.info.ready_at is None:
                    await box.count_failure(self.service, self.slot)
            box.touch_at(self.retry_at, self.service)
        box.plan_needed([self.service])
        self.stir(box)
        if self._telling:
            await suspend(self._until_settled)
        self.settled = True
        box.forget(self)
        box.plan_needed([self.service])

    async def _run(self, box: BoxLife) -> None:
        times = box.host.world.times
        if self.life.info.state is _S.CREATING:
            await box.kernel.sleep(times.create())
            box.host.started(self)
            self.step(box, _S.BOOTING)
        if self.life.info.state is _S.BOOTING:
            await box.kernel.sleep(times.boot())
            if box.host.world.fails():
                self.crashed = True
            elif not self.leaving:
                self.step(box, _S.READY)
                self.stir(box)
        if self.life.info.state in SERVING:
            await self._serve(box)
        if self.crashed:
            box.host.ended(self)
            self.step(box, _S.FAILED)
            return
        if self.life.info.state is _S.DRAINING:
            await box.kernel.sleep(times.drain())
        if self.life.info.state is not _S.STOPPING:
            self.step(box, _S.STOPPING)
        box.host.ended(self)
        self.step(box, _S.STOPPED)

    async def _serve(self, box: BoxLife) -> None:
        self._serving_since = min(self._serving_since, box.kernel.now)
        if not (self.leaving or self.crashed):
            await suspend(self._until_woken)
        if not self.crashed:
            self.step(box, _S.DRAINING)
            self.stir(box)

    def step(self, box: BoxLife, to: InstanceState) -> None:
        """The next state of its life."""
        life, _ = lifecycle.step(self.life, to, box.kernel.wall())
        if to is _S.READY:
            life = lifecycle.serve_at(life, "127.0.0.1:20000")
        self.life = life
        box.fleet.index.set_own_instance(life.info)

    def _until_woken(self, resume: Resume) -> None:
        self._wake = resume

    def _until_settled(self, resume: Resume) -> None:
        self._settled = resume

    # ── its slot's record ────────────────────────────────────────────────────────────────

    def stir(self, box: BoxLife) -> None:
        """Have the slot's record follow."""
        if not self._telling and self._is_behind():
            self._telling = True
            box.kernel.spawn(box.link, self.tell(box))

    def reassert(self, box: BoxLife) -> None:
        """Write the slot's record again if it is not as it was left here."""
        if self.synced and not is_as_written(box.fleet.slots, self._key, self.revision, self.told):
            self.told, self.synced = None, False
            self.stir(box)

    async def tell(self, box: BoxLife) -> None:
        """Bring the slot's record up to the life, while the slot is this instance's."""
        slots, me = box.fleet.slots, box.me
        while self._is_behind():
            life = self.life
            record = SlotRecord(
                host=me.host,
                host_id=me.host_id,
                config=self.config,
                seq=life.seq,
                info=life.info,
                demand=self.demand,
            )
            try:
                await box.until_connected()
                if not self.synced:
                    await self.sync(box, None)
                    continue
                self.revision = await slots.update(self._key, record, self.revision)
                self.told, self.synced = slot_facts(life.info), True
            except Conflict as exc:
                await self.sync(box, exc.last)
            except BusError:
                await box.kernel.sleep(_RETRY)
        self._telling = False
        if self._settled is not None:
            resume, self._settled = self._settled, None
            resume()

    async def sync(self, box: BoxLife, seq: int | None) -> None:
        """Find out how the slot's record stands."""
        slots = box.fleet.slots
        await slots.wait_live()
        if seq:
            await slots.wait_for(seq)
        self.synced = True
        record = slots.get(self._key)
        if record is None:
            self.revision = slots.revision(self._key)
            self.told = slot_facts(self.life.info) if self.life.info.state in ENDED else None
        elif box.me.holds(record.value):
            self.revision, self.told = record.revision, slot_facts(record.value.info)
        else:
            self.owned = False
            box.leave(self, f"slot {self._key} was taken by {record.value.host}")

    @property
    def _key(self) -> str:
        return slot_key(self.service, self.slot)

    def _is_behind(self) -> bool:
        return self.owned and slot_facts(self.life.info) != self.told
