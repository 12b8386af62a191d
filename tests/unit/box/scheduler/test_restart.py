"""A restart of instances: the slots it names, repeats, and its end."""

from __future__ import annotations

from msgspec.structs import replace

from bridge.box.scheduler.restart import with_restart
from bridge.box.scheduler.rollout import next_step, outdated
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Decision, Rollout, ServiceRecord
from bridge.protocol import InstanceState
from tests.unit.fleets import AT, fleet, slot

S = InstanceState
ORDER = Decision(at=AT, host="box-a", replicas=0, request_id="r")
RECORD = ServiceRecord(version=1, target=3, slots=[0, 1, 2])


def state(record: ServiceRecord = RECORD) -> FleetState:
    claims = {0: slot("web", 0), 1: slot("web", 1), 2: slot("web", 2, S.FAILED)}
    return fleet(services={"web": record}, slots={"web": claims})


def test_living_instances_are_replaced_by_others_of_the_same_config() -> None:
    record = with_restart("web", state(), "", ORDER)
    assert record is not None
    assert (record.restarts, record.config_id) == ([0, 1], RECORD.config_id)
    assert outdated("web", state(record)) == [0, 1]


def test_one_instance_alone_is_restarted() -> None:
    record = with_restart("web", state(), "web-1-box-a", ORDER)
    assert record is not None
    assert outdated("web", state(record)) == [1]
    assert with_restart("web", state(), "web-2-box-a", ORDER) is None  # it has failed


def test_a_repeated_request_restarts_nothing_again() -> None:
    record = with_restart("web", state(), "", ORDER)
    assert record is not None
    done = replace(record, restarts=[])
    assert with_restart("web", state(done), "", ORDER) is None
    assert with_restart("web", state(done), "", replace(ORDER, request_id="s")) is not None


def test_a_restart_resumes_a_rollout_that_has_stopped() -> None:
    stopped = replace(RECORD, rollout=Rollout(config=RECORD.config_id, stopped="it failed"))
    record = with_restart("web", state(stopped), "", ORDER)
    assert record is not None
    assert record.rollout is None


def test_a_restart_ends_when_its_instances_are_gone() -> None:
    claims = {3: slot("web", 3), 4: slot("web", 4)}
    record = ServiceRecord(version=5, target=2, slots=[3, 4], restarts=[0, 1])
    ended = fleet(services={"web": record}, slots={"web": claims})
    done = next_step("web", ended, at=AT, host="box-a")
    assert done is not None
    assert (done.restarts, done.rollout, done.settled) == ([], None, True)
