"""What a gateway believes of the fleet, event by event."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatfleet.core.fleet import (
    FLEET_EVENT,
    ControllerAlive,
    FleetSnapshot,
    GoneReason,
    ModelInfo,
    WorkerChanged,
    WorkerGone,
    WorkerInfo,
    WorkerKind,
    WorkerLoad,
    read_load,
)
from chatfleet.dispatch.breaker import FAILURES, FIRST_DELAY_S, CircuitState
from chatfleet.dispatch.view import MODEL_MEMORY_S, REPORT_S, REPROBE_S, SMOOTHING_S, FleetView, Gap, Worker
from chatfleet.observability.circuits import MAX_CIRCUITS, merged

A, B = "http://a:21001", "http://b:21001"
EXPIRY_S = 15.0


class Request:
    """One at a worker, which says so in `told` when that is lost."""

    def __init__(self, told: "list[Request]") -> None:
        self._told = told

    def worker_lost(self) -> None:
        self._told.append(self)


def info(worker_id: str, *models: str, ready: bool = True, kind: WorkerKind = "chatfleet") -> WorkerInfo:
    names = models or ("m",)
    return WorkerInfo(
        worker_id=worker_id,
        url=f"http://{worker_id}:1",
        kind=kind,
        models=tuple(ModelInfo(id=name) for name in names),
        ready=ready,
    )


def snapshot(*workers: WorkerInfo, epoch: int = 1, version: int = 0, controller_id: str = "c") -> FleetSnapshot:
    return FleetSnapshot(
        controller_id=controller_id, epoch=epoch, version=version, expiry_s=EXPIRY_S, workers=tuple(workers)
    )


def gone(version: int, worker_id: str, reason: GoneReason) -> WorkerGone:
    return WorkerGone(version=version, worker_id=worker_id, reason=reason)


def view_of(*workers: WorkerInfo) -> FleetView:
    view = FleetView()
    view.apply(A, snapshot(*workers), 0.0)
    return view


def ids(view: FleetView, model: str = "m") -> list[str]:
    return sorted(worker.info.worker_id for worker in view.workers_of(model))


def doubtful(view: FleetView, now: float) -> list[str]:
    return [worker.info.worker_id for worker in view.doubtful(now)]


def probe(view: FleetView, now: float, *, alive: bool) -> None:
    for worker in view.doubtful(now):
        view.probed(worker, alive=alive, now=now)


def test_nothing_is_known_before_a_snapshot() -> None:
    view = FleetView()
    assert not view.models()
    with pytest.raises(Gap):
        view.apply(A, ControllerAlive(version=0), 0.0)


def test_workers_come_change_and_leave() -> None:
    view = view_of(info("w1"))
    view.apply(A, WorkerChanged(version=1, worker=info("w2", "m", "n")), 0.0)
    assert ids(view) == ["w1", "w2"] and ids(view, "n") == ["w2"]
    view.apply(A, WorkerChanged(version=2, worker=info("w2", "n")), 0.0)
    assert ids(view) == ["w1"]
    view.apply(A, gone(3, "w1", "deregistered"), 0.0)
    assert ids(view) == [] and sorted(view.models()) == ["n"]


def test_a_worker_that_is_not_ready_is_kept_but_not_chosen() -> None:
    view = view_of(info("w1", ready=False))
    assert ids(view) == []
    view.apply(A, WorkerChanged(version=1, worker=info("w1")), 0.0)
    assert ids(view) == ["w1"]


def test_a_request_is_counted_through_changes_of_its_worker() -> None:
    view = view_of(info("w1"))
    (worker,) = view.workers_of("m")
    request = Request([])
    worker.begin(request)
    view.apply(A, WorkerChanged(version=1, worker=info("w1", "m", "n")), 0.0)
    assert view.workers_of("n")[0].in_flight == 1
    worker.end(request)
    worker.end(request)
    assert view.workers_of("n")[0].in_flight == 0


@pytest.mark.parametrize("version", [0, 2, 7])
def test_a_version_that_is_not_the_next_is_a_gap(version: int) -> None:
    with pytest.raises(Gap):
        view_of(info("w1")).apply(A, WorkerChanged(version=version, worker=info("w2")), 0.0)
    with pytest.raises(Gap):
        view_of(info("w1")).apply(A, ControllerAlive(version=1), 0.0)


def test_a_controller_that_restarts_empty_empties_nobody() -> None:
    view = view_of(info("w1"), info("w2"))
    view.apply(A, snapshot(epoch=2), 100.0)
    assert ids(view) == ["w1", "w2"] and not doubtful(view, 100.0 + EXPIRY_S - 1)
    view.apply(A, WorkerChanged(version=1, worker=info("w1")), 101.0)
    assert doubtful(view, 100.0 + EXPIRY_S) == ["w2"]
    assert ids(view) == ["w1", "w2"], "it is gone before it was probed"


def test_an_absent_worker_goes_when_its_probe_fails_and_stays_while_it_answers() -> None:
    view = view_of(info("w1"))
    view.apply(A, snapshot(epoch=2), 0.0)
    probe(view, EXPIRY_S, alive=True)
    assert ids(view) == ["w1"] and not doubtful(view, EXPIRY_S + REPROBE_S - 0.1)
    assert view.next_doubt() == EXPIRY_S + REPROBE_S
    probe(view, EXPIRY_S + REPROBE_S, alive=False)
    assert ids(view) == [] and view.next_doubt() == math.inf


def test_a_worker_whose_circuit_is_open_is_probed_when_that_is_due_and_stays_whatever_comes_of_it() -> None:
    view = view_of(info("w1"), info("w2"))
    fail(view, "w1", 10.0)
    assert view.next_doubt() == 10.0 + FIRST_DELAY_S and not doubtful(view, 10.0)
    due = 10.0 + FIRST_DELAY_S
    assert doubtful(view, due) == ["w1"]
    assert not view.probed(view.doubtful(due)[0], alive=False, now=due)
    assert ids(view) == ["w1", "w2"] and view.next_doubt() == due + 2 * FIRST_DELAY_S
    probe(view, due + 2 * FIRST_DELAY_S, alive=True)
    assert ids(view) == ["w1", "w2"] and view.next_doubt() == math.inf
    assert [worker.circuit.state for worker in view.troubled()] == [CircuitState.HALF_OPEN]


def test_a_probe_of_a_circuit_takes_nobody_away_before_the_controllers_absence_counts() -> None:
    view = view_of(info("w1"))
    view.apply(A, snapshot(epoch=2), 0.0)
    fail(view, "w1", 0.0)
    probe(view, FIRST_DELAY_S, alive=False)
    assert ids(view) == ["w1"]
    probe(view, EXPIRY_S, alive=False)
    assert ids(view) == [] and view.troubled() == []


def test_a_worker_is_not_probed_twice_at_a_time() -> None:
    view = view_of(info("w1"))
    view.apply(A, gone(1, "w1", "expired"), 0.0)
    (worker,) = view.doubtful(0.0)
    worker.is_probed = True
    assert not view.doubtful(0.0) and view.next_doubt() == math.inf


def fail(view: FleetView, worker_id: str, now: float) -> Worker:
    """Open the circuit of a worker of the model m."""
    (worker,) = (one for one in view.workers_of("m") if one.info.worker_id == worker_id)
    for _ in range(FAILURES):
        worker.failed(now)
    return worker


def test_changes_of_circuits_are_told_and_not_those_of_workers_that_are_gone() -> None:
    view = view_of(info("w1"))
    told: list[tuple[Worker, CircuitState, CircuitState]] = []
    view.on_circuit = lambda worker, before: told.append((worker, before, worker.circuit.state))
    worker = fail(view, "w1", 0.0)
    assert told == [(worker, CircuitState.CLOSED, CircuitState.OPEN)]
    worker.succeeded()
    assert told[1:] == [(worker, CircuitState.OPEN, CircuitState.CLOSED)]
    view.apply(A, gone(1, "w1", "deregistered"), 1.0)
    worker.failed(1.0, unreachable=True)
    worker.failed(1.0, unreachable=True)
    assert len(told) == 2 and view.troubled() == []


def circuits(view: FleetView) -> dict[tuple[str, str], tuple[int | None, int]]:
    """State and openings, by model and URL."""
    return {(one.model_name, one.worker): (one.state, one.opened) for one in merged([(view.circuits(), True)])}


def test_circuits_are_counted_by_worker_and_of_one_that_is_gone_only_what_grows() -> None:
    server = info("s", "m", "n", kind="openai")
    view = view_of(info("w1", "m", "another-name"), server)
    assert circuits(view) == {("m", "http://w1:1"): (0, 0), ("", "http://s:1"): (0, 0)}
    worker = fail(view, "w1", 0.0)
    worker.circuit.probed(alive=True, now=FIRST_DELAY_S)
    assert circuits(view)["m", "http://w1:1"] == (1, 1)
    worker.failed(2.0)
    assert circuits(view)["m", "http://w1:1"] == (2, 2)
    view.apply(A, gone(1, "w1", "deregistered"), 3.0)
    assert circuits(view) == {("m", "http://w1:1"): (None, 2), ("", "http://s:1"): (0, 0)}


def test_in_a_fleet_of_very_many_those_that_have_trouble_are_told() -> None:
    view = view_of(*(info(f"w{number}") for number in range(MAX_CIRCUITS + 50)))
    for number in (3, MAX_CIRCUITS + 49):
        fail(view, f"w{number}", 0.0)
    told = circuits(view)
    assert len(told) <= MAX_CIRCUITS + 1
    assert sorted(url for (_, url), (state, _) in told.items() if state) == ["http://w1073:1", "http://w3:1"]
    for number in range(MAX_CIRCUITS + 50):
        fail(view, f"w{number}", 0.0)
    assert len(circuits(view)) <= MAX_CIRCUITS + 1
    assert sum(opened for _, opened in circuits(view).values()) == MAX_CIRCUITS + 50


@pytest.mark.parametrize("reason", ["expired", "replaced"])
def test_a_worker_that_a_controller_gives_up_is_probed_at_once(reason: GoneReason) -> None:
    view = view_of(info("w1"))
    view.apply(A, gone(1, "w1", reason), 50.0)
    assert ids(view) == ["w1"] and doubtful(view, 50.0) == ["w1"]
    probe(view, 50.0, alive=False)
    assert ids(view) == []


def test_a_worker_that_left_while_the_watch_was_broken_is_probed_at_once() -> None:
    view = view_of(info("w1"))
    view.apply(A, snapshot(version=4), 50.0)
    assert doubtful(view, 50.0) == ["w1"]


def test_a_worker_that_is_vouched_for_during_its_probe_stays() -> None:
    view = view_of(info("w1"))
    view.apply(A, gone(1, "w1", "expired"), 0.0)
    (worker,) = view.doubtful(0.0)
    view.apply(A, WorkerChanged(version=2, worker=info("w1")), 1.0)
    view.probed(worker, alive=False, now=2.0)
    assert ids(view) == ["w1"]


def test_the_views_of_two_controllers_are_merged() -> None:
    view = view_of(info("w1"), info("w2"))
    view.apply(B, snapshot(info("w2"), info("w3"), controller_id="d"), 0.0)
    assert ids(view) == ["w1", "w2", "w3"]
    view.apply(A, gone(1, "w2", "expired"), 1.0)
    assert ids(view) == ["w1", "w2", "w3"] and not doubtful(view, 1e9), "the other controller still vouches for it"
    view.apply(B, gone(1, "w2", "expired"), 2.0)
    assert doubtful(view, 2.0) == ["w2"]


def test_a_worker_that_deregisters_with_one_controller_is_gone_whatever_the_other_says() -> None:
    view = view_of(info("w1"))
    view.apply(B, snapshot(info("w1"), controller_id="d"), 0.0)
    view.apply(A, gone(1, "w1", "deregistered"), 1.0)
    assert ids(view) == []
    view.apply(B, snapshot(info("w1"), controller_id="d", version=5), 2.0)
    assert ids(view) == []
    view.apply(B, gone(6, "w1", "expired"), 3.0)
    assert ids(view) == []


def test_a_foreign_server_that_one_controller_forgets_stays_with_the_other_and_may_come_back() -> None:
    server = info("s", kind="openai")
    view = view_of(server)
    view.apply(B, snapshot(server, controller_id="d"), 0.0)
    view.apply(A, gone(1, "s", "deregistered"), 1.0)
    assert ids(view) == ["s"]
    view.apply(B, gone(1, "s", "deregistered"), 1.0)
    assert ids(view) == []
    view.apply(A, WorkerChanged(version=2, worker=server), 2.0)
    assert ids(view) == ["s"]


def test_a_model_whose_workers_are_gone_is_remembered_for_a_while() -> None:
    view = view_of(info("w1", "m"), info("w2", "n"))
    view.apply(A, gone(1, "w1", "deregistered"), 10.0)
    assert view.is_away("m", 11.0) and not view.is_away("x", 11.0) and not view.is_away("n", 11.0)
    assert not view.is_away("m", 10.0 + MODEL_MEMORY_S)
    view.apply(A, WorkerChanged(version=2, worker=info("w3", "m")), 20.0)
    assert not view.is_away("m", 20.0) and view.serves("m")


@pytest.mark.parametrize(
    ("workers", "model"),
    [
        ([], None),
        ([info("w1")], "m"),
        ([info("w1"), info("w2")], "m"),
        ([info("w1", "m", "another-name"), info("w2", "m", "another-name")], "m"),
        ([info("w1", "m"), info("w2", "n")], None),
        ([info("w1", "m"), info("w2", "n", ready=False)], "m"),
        ([info("s", "m", "n", kind="openai")], None),
        ([info("s", "m", kind="openai"), info("w1", "m")], "m"),
    ],
)
def test_the_model_that_is_meant_when_none_is_named(workers: list[WorkerInfo], model: str | None) -> None:
    assert view_of(*workers).only_model() == model


def test_a_model_whose_workers_are_not_ready_is_away_and_not_unknown() -> None:
    view = view_of(info("w1", ready=False))
    assert view.is_away("m", 0.0) and not view.serves("m")


def test_the_requests_of_a_worker_that_is_dead_are_told() -> None:
    view = view_of(info("w1"))
    (worker,) = view.workers_of("m")
    told: list[Request] = []
    requests = [Request(told), Request(told), Request(told)]
    for request in requests:
        worker.begin(request)
    worker.end(requests[1])
    view.apply(A, gone(1, "w1", "expired"), 0.0)
    probe(view, 0.0, alive=True)
    assert told == []
    probe(view, REPROBE_S, alive=False)
    assert told == [requests[0], requests[2]]


def test_all_known_workers_are_named_ready_or_not() -> None:
    assert view_of(info("w1"), info("w2", ready=False)).worker_ids() == {"w1", "w2"}


def busy(worker: Worker, requests: int) -> list[Request]:
    begun = [Request([]) for _ in range(requests)]
    for request in begun:
        worker.begin(request)
    return begun


def test_the_load_of_a_worker_is_ours_and_that_of_others_each_once() -> None:
    (worker,) = view_of(info("w1")).workers_of("m")
    begun = busy(worker, 3)
    assert worker.load(0.0) == 3
    worker.report(5, 0.0)
    assert worker.load(0.0) == 5
    worker.end(begun[0])
    busy(worker, 2)
    assert worker.load(0.1) == 6, "what is ours is known at once"


def test_a_report_that_lags_behind_our_own_requests_makes_no_load_below_them() -> None:
    (worker,) = view_of(info("w1")).workers_of("m")
    busy(worker, 4)
    worker.report(1, 0.0)
    assert worker.load(0.0) == 4


def test_reports_are_averaged_so_that_one_moment_is_not_taken_for_the_truth() -> None:
    (worker,) = view_of(info("w1")).workers_of("m")
    for moment in range(1000):
        worker.report(20 * (moment % 2), moment / 10)
        assert moment < 500 or 8 <= worker.load(moment / 10) <= 12
    for moment in range(1000, 1000 + int(40 * SMOOTHING_S)):
        worker.report(0, moment / 10)
    assert worker.load(100 + 4 * SMOOTHING_S) < 0.5, "and what has ended is forgotten"


def test_a_report_counts_for_a_while() -> None:
    (worker,) = view_of(info("w1")).workers_of("m")
    worker.report(7, 10.0)
    assert worker.load(10.0 + REPORT_S - 0.1) == 7 and worker.load(10.0 + REPORT_S) == 0
    worker.report(2, 10.0 + 10 * REPORT_S)
    assert worker.load(10.0 + 10 * REPORT_S) == pytest.approx(2, abs=0.01)


def test_the_load_of_a_server_that_is_not_ours_is_not_believed() -> None:
    view = view_of(info("s", kind="openai"))
    (worker,) = view.workers_of("m")
    worker.report(9, 0.0)
    view.apply(A, ControllerAlive(version=0, loads={"s": WorkerLoad(running=9)}), 0.0)
    assert worker.load(0.0) == 0


def test_controllers_tell_the_load_of_workers_in_snapshots_and_signs_of_life() -> None:
    loads = {"w1": WorkerLoad(running=2, waiting=1), "unknown": WorkerLoad(running=5)}
    view = FleetView()
    view.apply(A, snapshot(info("w1"), info("w2")).model_copy(update={"loads": loads}), 0.0)
    by_id = {worker.info.worker_id: worker for worker in view.workers_of("m")}
    assert by_id["w1"].load(0.0) == 3 and by_id["w2"].load(0.0) == 0
    view.apply(A, ControllerAlive(version=0, loads={"w2": WorkerLoad(running=4)}), 1.0)
    assert by_id["w2"].load(1.0) == 4
    assert view.worker_ids() == {"w1", "w2"}


@pytest.mark.parametrize(
    ("value", "load"),
    [
        (b"0,0", 0),
        (b"3,2", 5),
        (WorkerLoad(running=64, waiting=1024).to_header(), 1088),
        *((value, None) for value in (b"", b"3", b"3,", b",2", b"3,2,1", b"-3,2", b"3, 2", b"3.5,2", b"3,2\n")),
        *((value, None) for value in (b"\xb3,2", b"9" * 7 + b",0", b"9" * 100_000, b"\xff\x00", b"running=3")),
    ],
)
def test_a_load_header_is_read_strictly_and_rubbish_is_no_load(value: bytes, load: int | None) -> None:
    assert read_load(value) == load


def test_old_and_new_components_understand_each_other() -> None:
    old_alive = FLEET_EVENT.validate_json('{"type":"alive","version":3}')
    assert isinstance(old_alive, ControllerAlive) and old_alive.loads == {}
    assert WorkerInfo.model_validate_json('{"worker_id":"w","url":"http://w:1","models":[]}').speed == 1.0
    view = view_of(info("w1"))
    view.apply(A, ControllerAlive(version=0), 0.0)
    assert ids(view) == ["w1"]


class TwoControllers(RuleBasedStateMachine):
    """Whatever happens in whatever order: the index holds exactly the ready workers, nobody whom a controller vouches
    for is missing, and nobody is in the view whom no controller ever named."""

    def __init__(self) -> None:
        super().__init__()
        self.view = FleetView()
        self.now = 0.0
        self.truth: dict[str, dict[str, WorkerInfo]] = {}
        self.epochs = {A: 0, B: 0}
        self.versions = {A: 0, B: 0}
        self.departed: set[str] = set()

    sources = st.sampled_from([A, B])
    workers = st.sampled_from([f"w{number}" for number in range(4)])

    def _infos(self, source: str) -> Sequence[WorkerInfo]:
        return tuple(self.truth[source].values())

    @rule(source=sources, restart=st.booleans())
    def connect(self, source: str, restart: bool) -> None:
        if restart or source not in self.truth:
            self.truth[source] = {}
            self.epochs[source] += 1
            self.versions[source] = 0
        event = snapshot(
            *self._infos(source), epoch=self.epochs[source], version=self.versions[source], controller_id=source
        )
        self.view.apply(source, event, self.now)

    @rule(source=sources, worker_id=workers, ready=st.booleans())
    def change(self, source: str, worker_id: str, ready: bool) -> None:
        if source in self.truth:
            self.versions[source] += 1
            self.truth[source][worker_id] = info(worker_id, ready=ready)
            event = WorkerChanged(version=self.versions[source], worker=self.truth[source][worker_id])
            self.view.apply(source, event, self.now)

    @rule(source=sources, worker_id=workers, reason=st.sampled_from(["expired", "deregistered", "replaced"]))
    def leave(self, source: str, worker_id: str, reason: GoneReason) -> None:
        if source in self.truth and worker_id in self.truth[source]:
            self.versions[source] += 1
            del self.truth[source][worker_id]
            if reason == "deregistered":
                self.departed.add(worker_id)
            self.view.apply(source, gone(self.versions[source], worker_id, reason), self.now)

    @rule(seconds=st.floats(0, 40), alive=st.booleans())
    def time_passes(self, seconds: float, alive: bool) -> None:
        self.now += seconds
        probe(self.view, self.now, alive=alive)

    @invariant()
    def nobody_who_is_vouched_for_is_missing(self) -> None:
        vouched = {worker_id for known in self.truth.values() for worker_id in known} - self.departed
        present = set(self.view._workers)
        assert vouched <= present
        assert present.isdisjoint(self.departed)

    @invariant()
    def the_index_holds_the_ready(self) -> None:
        ready = sorted(worker_id for worker_id, worker in self.view._workers.items() if worker.info.ready)
        assert ids(self.view) == ready
        assert self.view.serves("m") == bool(ready)


TwoControllers.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestTwoControllers = TwoControllers.TestCase
