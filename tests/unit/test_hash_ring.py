"""Consistent hashing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.dispatch.hash_ring import HashRing

names = st.sets(st.integers(0, 30).map(lambda number: f"w{number}"), min_size=1, max_size=8)


def ring_of(worker_ids: set[str]) -> HashRing:
    ring = HashRing()
    ring.update(dict.fromkeys(worker_ids, 1.0))
    return ring


def order(ring: HashRing, key: bytes) -> list[str]:
    """Each worker once, in the order in which they take over."""
    return list(dict.fromkeys(ring.around(key)))


@settings(deadline=None)
@given(before=names, after=names, key=st.binary(max_size=20))
def test_whoever_comes_and_goes_the_order_of_the_others_stays(before: set[str], after: set[str], key: bytes) -> None:
    ring = ring_of(before)
    first = order(ring, key)
    assert set(first) == before
    ring.update(dict.fromkeys(after, 1.0))
    ring.retain(after)
    assert order(ring, key) == order(ring_of(after), key), "it matters how it came about"
    stayed = before & after
    assert [one for one in first if one in stayed] == [one for one in order(ring, key) if one in stayed]


@pytest.mark.long
def test_a_worker_whose_speed_changes_has_as_many_points_as_it_asks_for() -> None:
    ring = ring_of({"a", "b"})
    ring.update({"a": 3.0, "b": 1.0})
    ring.update({"a": 0.5, "b": 1.0})
    fresh = HashRing()
    fresh.update({"a": 0.5, "b": 1.0})
    assert list(ring.around(b"k")) == list(fresh.around(b"k"))
    ring.retain(set())
    assert list(ring.around(b"k")) == []
