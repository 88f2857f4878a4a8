"""Which worker gets a request."""

import math
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.core.fleet import ModelInfo, WorkerInfo
from chatfleet.dispatch.breaker import AVOID_S, FAILURES
from chatfleet.dispatch.policies import (
    BUSIER_BY,
    BUSIER_TIMES,
    MAX_MODELS,
    MAX_SESSION_CHARS,
    POLICY_NAMES,
    Affinity,
    Policies,
    Policy,
)
from chatfleet.dispatch.prefix_tree import BLOCK_BYTES, MAX_KEY_BYTES
from chatfleet.dispatch.view import Worker

NOW = 100.0
NOTHING = Affinity()


class Request:
    def worker_lost(self) -> None:
        pass


def workers(*loads: int, speeds: Sequence[float] = ()) -> list[Worker]:
    """Workers w0, w1, ... with so many requests of this gateway."""
    made = []
    for index, load in enumerate(loads):
        info = WorkerInfo(
            worker_id=f"w{index}",
            url=f"http://w{index}:1",
            models=(ModelInfo(id="m"),),
            speed=speeds[index] if speeds else 1.0,
        )
        made.append(Worker(info))
        for _ in range(load):
            made[-1].begin(Request())
    return made


def policy(name: str, seed: int = 1) -> Policy:
    return Policies(name, {}, Random(seed)).of("m")


def chosen(a_policy: Policy, among: Sequence[Worker], affinity: Affinity = NOTHING, times: int = 1) -> Counter[str]:
    """How often each worker is chosen, by id."""
    return Counter(a_policy.choose(among, affinity, NOW).info.worker_id for _ in range(times))


def prompt(text: str, blocks: int) -> bytes:
    """Blocks that are as unlike each other as those of another text."""
    return b"".join(f"{text} {index}".encode().ljust(BLOCK_BYTES, b".") for index in range(blocks))


@pytest.mark.parametrize("name", POLICY_NAMES)
@settings(deadline=None)
@given(
    loads=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    seed=st.integers(),
    session=st.text(max_size=20),
    prefix=st.binary(max_size=4 * BLOCK_BYTES),
)
def test_every_policy_chooses_one_of_the_workers(
    name: str, loads: list[int], seed: int, session: str, prefix: bytes
) -> None:
    among = workers(*loads)
    assert policy(name, seed).choose(among, Affinity(prefix, session), NOW) in among


@pytest.mark.parametrize("name", POLICY_NAMES)
@pytest.mark.parametrize("affinity", [NOTHING, Affinity(prompt("a", 4), "someone")])
def test_workers_that_have_just_failed_are_avoided_unless_there_is_no_other(name: str, affinity: Affinity) -> None:
    a_policy = policy(name)
    among = workers(0, 9, 0, 9)
    a_policy.choose(among, affinity, NOW)
    for worker in among:
        if worker is not among[1]:
            worker.failed(NOW)
    assert chosen(a_policy, among, affinity, 20) == {"w1": 20}
    among[1].failed(NOW)
    assert a_policy.choose(among, affinity, NOW) in among
    assert a_policy.choose(among[:1], affinity, NOW) is among[0]


def sessions(count: int) -> list[Affinity]:
    return [Affinity(session=f"user-{number}") for number in range(count)]


def opened(worker: Worker, now: float = NOW) -> None:
    for _ in range(FAILURES):
        worker.failed(now)


def half_opened(worker: Worker) -> None:
    opened(worker, 0.0)
    worker.circuit.probed(alive=True, now=NOW)


BOTH_AFFINITIES = pytest.mark.parametrize("affinity", [NOTHING, Affinity(prompt("a", 4), "someone")])


@pytest.mark.parametrize("name", POLICY_NAMES)
@BOTH_AFFINITIES
def test_an_open_circuit_keeps_requests_away_however_late_and_however_busy_the_others(
    name: str, affinity: Affinity
) -> None:
    a_policy, among = policy(name), workers(0, 9, 0, 9)
    for worker in (among[0], among[2], among[3]):
        opened(worker)
    later = NOW + 1000
    assert {a_policy.choose(among, affinity, later) for _ in range(20)} == {among[1]}


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_half_open_worker_is_asked_for_one_request_at_a_time(name: str) -> None:
    a_policy, among = policy(name), workers(0, 0, 0)
    half_opened(among[0])
    assert among[0] in {a_policy.choose(among, one, NOW) for one in sessions(60)}
    among[0].begin(trial := Request())
    assert among[0] not in {a_policy.choose(among, one, NOW) for one in sessions(60)}
    among[0].end(trial)
    assert among[0] in {a_policy.choose(among, one, NOW) for one in sessions(60)}, "the trial had no outcome"


@pytest.mark.parametrize("name", POLICY_NAMES)
@BOTH_AFFINITIES
def test_where_none_may_be_asked_the_least_bad_is(name: str, affinity: Affinity) -> None:
    a_policy, among = policy(name), workers(0, 0, 0, 0)
    for number, worker in enumerate(among):
        opened(worker, NOW - number)
    assert {a_policy.choose(among, affinity, NOW) for _ in range(20)} == {among[3]}, "it is probed first"
    half_opened(among[1])
    among[1].begin(Request())
    assert {a_policy.choose(among, affinity, NOW) for _ in range(20)} == {among[1]}
    among[0].succeeded()
    among[0].failed(NOW)
    assert {a_policy.choose(among, affinity, NOW) for _ in range(20)} == {among[0]}, "its circuit is closed"


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_a_policy_may_be_asked_about_ever_other_workers(name: str) -> None:
    """As when a request is tried again without those that could not be reached."""
    a_policy, among, affinity = policy(name), workers(0, 0, 0), Affinity(prompt("a", 4), "someone")
    first = a_policy.choose(among, affinity, NOW)
    others = [worker for worker in among if worker is not first]
    second = a_policy.choose(others, affinity, NOW)
    assert second in others
    assert a_policy.choose([first], affinity, NOW) is first


@settings(deadline=None)
@given(loads=st.lists(st.integers(0, 5), min_size=1), seed=st.integers())
def test_shortest_queue_takes_the_least_loaded(loads: list[int], seed: int) -> None:
    assert policy("shortest_queue", seed).choose(workers(*loads), NOTHING, NOW).in_flight == min(loads)


def test_equals_share_the_work() -> None:
    for name in ("shortest_queue", "power_of_two", "round_robin"):
        a_policy, among = policy(name), workers(0, 0, 0, 0)
        for _ in range(400):
            a_policy.choose(among, NOTHING, NOW).begin(Request())
        assert all(90 <= worker.in_flight <= 110 for worker in among), name


def test_a_fast_worker_gets_more() -> None:
    for name in ("shortest_queue", "power_of_two"):
        a_policy, among = policy(name), workers(0, 0, speeds=(3.0, 1.0))
        for _ in range(400):
            a_policy.choose(among, NOTHING, NOW).begin(Request())
        assert 295 <= among[0].in_flight <= 305, name
    drawn = chosen(policy("lottery"), workers(9, 0, speeds=(3.0, 1.0)), times=2000)
    assert 1400 <= drawn["w0"] <= 1600


def test_the_more_loaded_of_two_is_never_taken_by_power_of_two() -> None:
    assert chosen(policy("power_of_two"), workers(3, 2), times=50) == {"w1": 50}
    drawn = chosen(policy("power_of_two"), workers(0, 5, 5, 5, 5), times=1000)
    assert 300 <= drawn["w0"] <= 500, "it is among two of five in two cases of five"
    assert len(drawn) == 5


def test_what_workers_report_counts_too() -> None:
    among = workers(1, 1)
    among[0].report(9, NOW)
    for name in ("shortest_queue", "power_of_two"):
        assert chosen(policy(name), among, times=20) == {"w1": 20}


def test_round_robin_takes_turns_and_gateways_begin_anywhere() -> None:
    a_policy, among = policy("round_robin"), workers(9, 0, 0)
    turns = [a_policy.choose(among, NOTHING, NOW).info.worker_id for _ in range(6)]
    assert turns[:3] == turns[3:] and set(turns) == {"w0", "w1", "w2"}
    assert len({policy("round_robin", seed).choose(among, NOTHING, NOW).info.worker_id for seed in range(40)}) == 3
    among[1].failed(NOW)
    assert chosen(a_policy, among, times=20) == {"w0": 10, "w2": 10}


def homes(among: Sequence[Worker], seed: int = 1) -> dict[str, str]:
    a_policy = policy("session", seed)
    return {one.session: a_policy.choose(among, one, NOW).info.worker_id for one in sessions(2000)}


def test_a_session_stays_with_its_worker_in_every_gateway_and_however_busy() -> None:
    before = homes(workers(0, 0, 0, 0))
    assert before == homes(workers(50, 0, 9, 0), seed=2) == homes(list(reversed(workers(0, 0, 0, 0))))
    assert all(350 <= count <= 650 for count in Counter(before.values()).values())


def test_a_worker_that_comes_or_goes_moves_only_its_share_of_the_sessions() -> None:
    few, many = homes(workers(*[0] * 9)), homes(workers(*[0] * 10))
    moved = [session for session in few if few[session] != many[session]]
    assert 120 <= len(moved) <= 280, "of 2000, a tenth"
    assert {many[session] for session in moved} == {"w9"}, "one moved between workers that were there all the time"


def test_the_sessions_of_an_avoided_worker_go_to_the_next_and_come_back() -> None:
    a_policy, among = policy("session"), workers(0, 0, 0)
    before = {one: a_policy.choose(among, one, NOW) for one in sessions(300)}
    among[0].failed(NOW)
    meanwhile = {one: a_policy.choose(among, one, NOW) for one in before}
    assert all(meanwhile[one] is home for one, home in before.items() if home is not among[0])
    assert {meanwhile[one].info.worker_id for one, home in before.items() if home is among[0]} == {"w1", "w2"}
    assert before == {one: a_policy.choose(among, one, NOW + AVOID_S) for one in before}


def test_requests_without_a_session_go_by_load() -> None:
    assert chosen(policy("session"), workers(3, 2), times=20) == {"w1": 20}


def test_any_text_may_name_a_session() -> None:
    among = workers(0, 0)
    for session in ("\ud800", "\x00", "a" * 5_000_000):
        assert policy("session").choose(among, Affinity(session=session), NOW) in among
    long = "a" * MAX_SESSION_CHARS
    assert chosen(policy("session"), among, Affinity(session=long)) == chosen(
        policy("session"), among, Affinity(session=long + "b")
    )


def test_a_fast_worker_has_more_sessions() -> None:
    counts = Counter(homes(workers(0, 0, speeds=(3.0, 1.0))).values())
    assert 1300 <= counts["w0"] <= 1700


def test_a_conversation_stays_where_it_began() -> None:
    a_policy, among = policy("prefix_aware"), workers(0, 0, 0, 0)
    for number in range(20):
        text = prompt(f"conversation {number}", 4)
        first = a_policy.choose(among, Affinity(text + b"}]"), NOW)
        for turn in range(5):
            text += prompt(f"turn {turn} of {number}", 3)
            assert a_policy.choose(among, Affinity(text + b"}]"), NOW) is first


def test_gateways_that_know_nothing_of_each_other_send_a_conversation_to_the_same_worker() -> None:
    one, other, among = policy("prefix_aware", 1), policy("prefix_aware", 2), workers(0, 0, 0, 0)
    system = prompt("system", 3)
    for a_policy in (one, other):  # both know the system prompt, which conversations share
        for number in range(3):
            a_policy.choose(among, Affinity(system + prompt(f"{number} of {id(a_policy)}", 9)), NOW)
    same = [
        one.choose(among, Affinity(system + text), NOW)
        is other.choose(among, Affinity(system + text + prompt("more", 3)), NOW)
        for text in (prompt(f"conversation {number}", 9) for number in range(50))
    ]
    assert all(same)


def test_new_conversations_spread() -> None:
    a_policy, among = policy("prefix_aware"), workers(0, 0, 0, 0)
    drawn = Counter(
        a_policy.choose(among, Affinity(prompt(f"conversation {number}", 4)), NOW).info.worker_id
        for number in range(400)
    )
    assert len(drawn) == 4 and min(drawn.values()) >= 50


def test_a_much_busier_worker_is_left_for_another_which_has_the_prefix_from_then_on() -> None:
    a_policy, among, affinity = policy("prefix_aware"), workers(0, 0), Affinity(prompt("a", 8))
    favourite = a_policy.choose(among, affinity, NOW)
    (other,) = (worker for worker in among if worker is not favourite)
    limit = math.floor(BUSIER_TIMES * 1 + BUSIER_BY) - 1
    requests = [Request() for _ in range(limit + 1)]
    for request in requests[:limit]:
        favourite.begin(request)
    assert a_policy.choose(among, affinity, NOW) is favourite
    favourite.begin(requests[limit])
    assert a_policy.choose(among, affinity, NOW) is other
    for request in requests:
        favourite.end(request)
    spread = {a_policy.choose(among, Affinity(affinity.prefix + prompt(str(n), 2)), NOW) for n in range(40)}
    assert spread == set(among), "both have it now"


def test_what_is_known_of_a_worker_that_is_gone_is_forgotten() -> None:
    policies = Policies("prefix_aware", {"s": "session"}, Random(1))
    among, affinity = workers(0, 0, 0), Affinity(prompt("a", 8), "someone")
    favourite = policies.of("m").choose(among, affinity, NOW)
    policies.of("s").choose(among, affinity, NOW)
    others = [worker for worker in among if worker is not favourite]
    policies.retain({worker.info.worker_id for worker in others})
    heir = policies.of("m").choose(others, affinity, NOW)
    assert heir in others
    assert policies.of("m").choose(among, affinity, NOW) is heir, "the one that is gone was remembered"
    assert policies.of("s").choose(others, affinity, NOW) in others


def test_short_or_missing_prefixes_go_by_load() -> None:
    a_policy, among = policy("prefix_aware"), workers(3, 2)
    for prefix in (b"", b"[]", b"x" * (BLOCK_BYTES - 1)):
        assert chosen(a_policy, among, Affinity(prefix), 20) == {"w1": 20}


def test_a_prompt_is_known_by_its_leading_bytes() -> None:
    a_policy, among = policy("prefix_aware"), workers(0, 0, 0, 0)
    long = prompt("long", MAX_KEY_BYTES // BLOCK_BYTES)
    first = a_policy.choose(among, Affinity(long + b"a" * 1_000_000), NOW)
    assert a_policy.choose(among, Affinity(long + b"b" * 1_000_000), NOW) is first


def test_each_model_has_its_own_policy_and_they_are_bounded() -> None:
    policies = Policies("random", {"chat": "session", "turns": "round_robin"}, Random(1))
    assert policies.of("chat").uses_session and not policies.of("other").uses_session
    assert policies.of("turns") is policies.of("turns")
    first = policies.of("m0")
    for number in range(MAX_MODELS + 5):
        policies.of(f"m{number}")
    assert policies.of("m0") is not first


def test_policies_say_what_they_want_to_know_of_a_request() -> None:
    wants = {name: (policy(name).uses_prefix, policy(name).uses_session) for name in POLICY_NAMES}
    assert {name for name, (prefix, _) in wants.items() if prefix} == {"prefix_aware"}
    assert {name for name, (_, session) in wants.items() if session} == {"session"}
