"""The registry: who is in the fleet, and that its events tell exactly that."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatfleet.controller.errors import FleetFull
from chatfleet.controller.registry import Registry
from chatfleet.core.fleet import (
    MAX_LOADS,
    FleetChange,
    Heartbeat,
    ModelInfo,
    WorkerChanged,
    WorkerGone,
    WorkerInfo,
    WorkerLoad,
)

EXPIRY_S = 15.0


def worker(worker_id: str = "w", url: str = "http://w:1", *models: str, ready: bool = True) -> WorkerInfo:
    return WorkerInfo(worker_id=worker_id, url=url, models=tuple(ModelInfo(id=model) for model in models), ready=ready)


def beat(info: WorkerInfo, **load: int) -> Heartbeat:
    return Heartbeat(worker=info, load=WorkerLoad(**load))


def test_a_new_worker_is_an_event_and_an_unchanged_one_is_none() -> None:
    registry = Registry(EXPIRY_S)
    assert registry.hear(beat(worker()), 0.0) == [WorkerChanged(version=1, worker=worker())]
    assert registry.hear(beat(worker()), 5.0) == []
    assert registry.workers() == (worker(),) and registry.version == 1


def test_load_is_kept_and_is_no_event() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker()), 0.0)
    assert registry.hear(beat(worker(), running=3, waiting=1), 1.0) == []
    member = registry.get("w")
    assert member is not None and member.load == WorkerLoad(running=3, waiting=1)


def test_the_loads_of_those_heard_of_lately_can_be_told_and_are_bounded() -> None:
    registry = Registry(EXPIRY_S)
    for number in range(MAX_LOADS + 2):
        registry.hear(beat(worker(f"w{number}", f"http://w{number}:1"), running=number), number / 1000)
    registry.hear(beat(worker("w1", "http://w1:1"), waiting=7), 5.0)
    loads = registry.loads(0.0)
    assert len(loads) == MAX_LOADS and loads["w1"] == WorkerLoad(waiting=7)
    assert f"w{MAX_LOADS + 1}" in loads and "w0" not in loads
    assert registry.loads(5.0) == {"w1": WorkerLoad(waiting=7)}
    assert registry.loads(6.0) == {}


def test_what_a_worker_changes_is_an_event() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker()), 0.0)
    resting = worker("w", "http://w:2", "m", ready=False)
    assert registry.hear(beat(resting), 1.0) == [WorkerChanged(version=2, worker=resting)]
    assert registry.holder("http://w:2") == resting and registry.holder("http://w:1") is None


def test_a_worker_expires_at_its_deadline_and_not_before() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker()), 0.0)
    registry.hear(beat(worker()), 3.0)
    assert registry.next_deadline() == 18.0
    assert registry.expire(17.999) == []
    assert registry.expire(18.0) == [WorkerGone(version=2, worker_id="w", reason="expired")]
    assert registry.workers() == () and registry.next_deadline() is None


def test_the_longest_silent_worker_sets_the_deadline() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker("a", "http://a:1")), 0.0)
    registry.hear(beat(worker("b", "http://b:1")), 1.0)
    registry.hear(beat(worker("a", "http://a:1")), 2.0)
    assert registry.next_deadline() == 16.0
    assert [change.worker_id for change in registry.expire(16.5) if change.type == "gone"] == ["b"]


def test_silence_while_nobody_listened_does_not_count() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker()), 0.0)
    registry.excuse(60.0)
    assert registry.expire(74.0) == []
    assert len(registry.expire(75.0)) == 1


def test_a_worker_with_the_url_of_another_replaces_it() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker("old")), 0.0)
    assert registry.hear(beat(worker("new")), 1.0) == [
        WorkerGone(version=2, worker_id="old", reason="replaced"),
        WorkerChanged(version=3, worker=worker("new")),
    ]
    assert registry.workers() == (worker("new"),)


def test_a_known_worker_that_moves_to_the_url_of_another_replaces_it() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker("a", "http://a:1")), 0.0)
    registry.hear(beat(worker("b", "http://b:1")), 0.0)
    registry.hear(beat(worker("a", "http://b:1")), 1.0)
    assert registry.workers() == (worker("a", "http://b:1"),)
    assert registry.holder("http://a:1") is None


def test_leaving_twice_is_one_event() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker()), 0.0)
    assert registry.deregister("w") == [WorkerGone(version=2, worker_id="w", reason="deregistered")]
    assert registry.deregister("w") == [] and registry.deregister("stranger") == []


def test_the_number_of_workers_is_bounded_and_a_refusal_changes_nothing() -> None:
    registry = Registry(EXPIRY_S, max_workers=2)
    registry.hear(beat(worker("a", "http://a:1")), 0.0)
    registry.hear(beat(worker("b", "http://b:1")), 0.0)
    with pytest.raises(FleetFull, match="2 workers"):
        registry.hear(beat(worker("c", "http://c:1")), 1.0)
    assert registry.version == 2 and len(registry) == 2
    registry.hear(beat(worker("a", "http://a:1", "changed")), 1.0)
    registry.hear(beat(worker("c", "http://b:1")), 1.0)
    assert [info.worker_id for info in registry.workers()] == ["a", "c"]


def test_the_size_of_the_fleet_is_bounded_and_room_comes_back() -> None:
    small, large = worker("a", "http://a:1"), worker("b", "http://b:1", *(f"model-{n}" for n in range(100)))
    registry = Registry(EXPIRY_S, max_fleet_bytes=len(large.to_json()))
    registry.hear(beat(small), 0.0)
    with pytest.raises(FleetFull, match="bytes"):
        registry.hear(beat(large), 1.0)
    assert registry.workers() == (small,)
    registry.deregister("a")
    registry.hear(beat(large), 2.0)
    with pytest.raises(FleetFull):
        registry.hear(beat(small), 3.0)


def test_one_that_drains_is_not_ready_whatever_it_says_until_it_leaves() -> None:
    registry = Registry(EXPIRY_S)
    registry.hear(beat(worker("w", "http://w:1", "m")), 0.0)
    resting = worker("w", "http://w:1", "m", ready=False)
    assert registry.drain("w") == [WorkerChanged(version=2, worker=resting)]
    assert registry.drain("w") == [] and registry.drain("stranger") == []
    assert registry.hear(beat(worker("w", "http://w:1", "m"), running=2), 1.0) == []
    member = registry.get("w")
    assert member is not None and member.draining and member.load == WorkerLoad(running=2)
    moved = worker("w", "http://w:2", "m")
    assert registry.hear(beat(moved), 2.0) == [
        WorkerChanged(version=3, worker=moved.model_copy(update={"ready": False}))
    ]
    registry.deregister("w")
    registry.hear(beat(moved), 3.0)
    assert registry.workers() == (moved,), "it has left, and comes anew"


WORKER_IDS = st.sampled_from(["a", "b", "c", "d"])
URLS = st.sampled_from(["http://one:1", "http://two:2", "http://three:3"])


class Replayed(RuleBasedStateMachine):
    """One who watches from the start, and one who begins anew now and then, know what a fresh snapshot says."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(EXPIRY_S, max_workers=3)
        self.now = 0.0
        self.view: dict[str, WorkerInfo] = {}
        self.version = 0
        self.heard: dict[str, float] = {}
        self.draining: set[str] = set()

    def watch(self, changes: list[FleetChange]) -> None:
        for change in changes:
            assert change.version == self.version + 1
            self.version = change.version
            if change.type == "changed":
                assert self.view.get(change.worker.worker_id) != change.worker
                self.view[change.worker.worker_id] = change.worker
            else:
                del self.view[change.worker_id]
                del self.heard[change.worker_id]
                self.draining.discard(change.worker_id)

    @rule(worker_id=WORKER_IDS, url=URLS, models=st.lists(st.sampled_from(["m", "n"]), max_size=2), ready=st.booleans())
    def hear(self, worker_id: str, url: str, models: list[str], ready: bool) -> None:
        heartbeat = beat(worker(worker_id, url, *models, ready=ready))
        try:
            changes = self.registry.hear(heartbeat, self.now)
        except FleetFull:
            assert len(self.view) == 3 and worker_id not in self.view
        else:
            self.heard[worker_id] = self.now
            self.watch(changes)
            ready = ready and worker_id not in self.draining
            assert self.registry.holder(url) == worker(worker_id, url, *models, ready=ready)

    @rule(worker_id=WORKER_IDS)
    def drain(self, worker_id: str) -> None:
        self.watch(self.registry.drain(worker_id))
        if worker_id in self.view:
            self.draining.add(worker_id)
            assert not self.view[worker_id].ready

    @rule(worker_id=WORKER_IDS)
    def deregister(self, worker_id: str) -> None:
        self.watch(self.registry.deregister(worker_id))
        assert worker_id not in self.view

    @rule(wait_s=st.floats(0, 20))
    def wait(self, wait_s: float) -> None:
        self.now += wait_s
        self.watch(self.registry.expire(self.now))

    @rule()
    def begin_anew(self) -> None:
        self.view = {info.worker_id: info for info in self.registry.workers()}
        self.version = self.registry.version

    @invariant()
    def same_as_a_fresh_snapshot(self) -> None:
        assert self.view == {info.worker_id: info for info in self.registry.workers()}
        assert self.version == self.registry.version
        urls = [info.url for info in self.registry.workers()]
        assert len(set(urls)) == len(urls)
        assert self.registry.next_deadline() == min((at + EXPIRY_S for at in self.heard.values()), default=None)
        assert all(at + EXPIRY_S > self.now for at in self.heard.values())


TestReplayed = Replayed.TestCase
