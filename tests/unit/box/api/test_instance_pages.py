"""The pages of `box.instances`, against the whole list."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from bridge.box.api import instance_pages
from bridge.box.api.instance_pages import page
from bridge.box.api.replies import with_instances
from bridge.box.state.fleet_index import FleetIndex
from bridge.errors import ProtocolError
from bridge.protocol import InstancesRequest, InstancesResponse, InstanceState, decode
from tests.unit.fleets import AT, slot

_ROOMY = 1 << 20


def _index(count: int) -> FleetIndex:
    """Instances of two services, the higher numbers older; each second is shared by two."""
    index = FleetIndex()
    for number in range(count):
        service = ("web", "api")[number % 2]
        index.set_slot(service, number, slot(service, number, age=number // 2))
    return index


def _walk(index: FleetIndex, service: str, limit: int, max_payload: int = _ROOMY) -> list[str]:
    """The ids on all pages, by their cursors."""
    listed, cursor = list[str](), ""
    while True:
        request = InstancesRequest(service=service, limit=limit, after=cursor)
        data, _ = with_instances(page(index.state, request, max_payload), max_payload)
        answer = decode(InstancesResponse, data)
        assert len(data) <= max_payload
        assert answer.hosts.keys() == {info.id for info in answer.instances}
        listed += [info.id for info in answer.instances]
        if not (cursor := answer.next or ""):
            return listed


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_the_pages_are_the_whole_list_oldest_first(limit: int) -> None:
    index = _index(20)
    everything = page(index.state, InstancesRequest(), _ROOMY)
    ids = [info.id for info in everything.instances]
    assert len(ids) == everything.total == 20
    assert everything.next == ""
    assert [i.created_at for i in everything.instances] == sorted(
        i.created_at for i in everything.instances
    )
    assert _walk(index, "", limit) == ids
    assert _walk(index, "web", limit) == [name for name in ids if name.startswith("web")]


def test_a_page_that_max_payload_cuts_names_the_next_one() -> None:
    index = _index(300)
    assert len(_walk(index, "", limit=1000, max_payload=20_000)) == 300


def test_an_instance_that_stays_is_on_one_page_whatever_comes_and_goes() -> None:
    index = _index(20)
    stay = {info.id for info in page(index.state, InstancesRequest(), _ROOMY).instances[1:]}
    first = page(index.state, InstancesRequest(limit=5), _ROOMY)
    oldest = first.instances[0]
    for service in ("web", "api"):  # the oldest one goes, others come, older and younger
        for number, claim in list(index.state.slots_of(service).items()):
            if claim.info.id == oldest.id:
                index.set_slot(service, number, None)
        index.set_slot(service, 100, slot(service, 100, age=500))
        index.set_slot(service, 101, slot(service, 101, age=-5))
    rest = page(index.state, InstancesRequest(after=first.next or ""), _ROOMY)
    listed = [info.id for info in (*first.instances, *rest.instances)]
    assert len(listed) == len(set(listed))
    assert stay <= set(listed)


def test_a_cursor_stays_valid_after_its_instance_has_gone() -> None:
    index = _index(4)
    first = page(index.state, InstancesRequest(limit=2), _ROOMY)
    everything = page(index.state, InstancesRequest(), _ROOMY)
    gone = first.instances[-1]
    for number, claim in list(index.state.slots_of(gone.service).items()):
        if claim.info.id == gone.id:
            index.set_slot(gone.service, number, None)
    rest = page(index.state, InstancesRequest(after=first.next or ""), _ROOMY)
    assert rest.instances == everything.instances[2:]


def test_an_own_instance_that_has_ended_is_neither_listed_nor_counted() -> None:
    index = _index(10)
    everything = page(index.state, InstancesRequest(), _ROOMY).instances
    ended = [everything[0], everything[3], everything[9]]
    for info in ended:
        index.set_own_instance(replace(info, state=InstanceState.FAILED))
    left = [info for info in everything if info not in ended]
    for limit in (1, 3, 100):
        assert _walk(index, "", limit) == [info.id for info in left]
    for offset in range(8):
        listed = page(index.state, InstancesRequest(offset=offset, limit=2), _ROOMY)
        assert listed.instances == left[offset : offset + 2]
        assert listed.total == len(left)


def test_a_cursor_that_no_box_gave_is_refused() -> None:
    for cursor in ("3", "web-1", "yesterday/web-1"):
        with pytest.raises(ProtocolError):
            page(_index(1).state, InstancesRequest(after=cursor), _ROOMY)


def test_no_listed_instance_is_smaller_than_the_bound() -> None:
    index = FleetIndex()
    claim = slot("a", 0)
    index.set_slot("a", 0, replace(claim, info=replace(claim.info, id="a", endpoint=None)))
    [info] = page(index.state, InstancesRequest(), _ROOMY).instances
    bare = InstancesResponse(total=1, instances=[replace(info, ready_at=None)], hosts={})
    data, _ = with_instances(bare, _ROOMY)
    empty, _ = with_instances(InstancesResponse(total=1, instances=[], hosts={}), _ROOMY)
    assert info.created_at + timedelta(0) == AT
    assert len(data) - len(empty) >= instance_pages.SMALLEST
