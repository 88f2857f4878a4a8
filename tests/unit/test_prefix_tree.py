"""The tree of prefixes beside a naive model of it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chatfleet.dispatch import prefix_tree
from chatfleet.dispatch.prefix_tree import BLOCK_BYTES, MAX_HOLDERS, MAX_KEY_BYTES, PrefixTree

keys = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=7).map(
    lambda letters: b"".join(letter * BLOCK_BYTES for letter in letters)
)
tails = st.sampled_from([b"", b"x", b"a" * (BLOCK_BYTES - 1)])
worker_ids = st.sampled_from([f"w{number}" for number in range(4)])


def blocks(key: bytes) -> list[bytes]:
    """Every beginning of `key` in whole blocks, the shortest first."""
    return [key[:end] for end in range(BLOCK_BYTES, len(key) + 1, BLOCK_BYTES)]


def longest_holders(tree: PrefixTree, key: bytes) -> set[str]:
    return set(next(tree.match(key).holders(), ()))


class BesideNaive(RuleBasedStateMachine):
    """While nothing has to be evicted, the tree knows exactly what a set of all beginnings knows."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree()
        self.seen: dict[bytes, set[str]] = {}

    @rule(key=keys, tail=tails, worker_id=worker_ids)
    def insert(self, key: bytes, tail: bytes, worker_id: str) -> None:
        self.tree.insert(key + tail, worker_id)
        for beginning in blocks(key):
            self.seen.setdefault(beginning, set()).add(worker_id)

    @rule(left=st.sets(worker_ids))
    def retain(self, left: set[str]) -> None:
        self.tree.retain(left)
        self.seen = {beginning: held & left for beginning, held in self.seen.items() if held & left}

    @rule(key=keys, tail=tails)
    def match(self, key: bytes, tail: bytes) -> None:
        known = [beginning for beginning in blocks(key) if beginning in self.seen]
        match = self.tree.match(key + tail)
        assert match.matched_bytes == (len(known[-1]) if known else 0)
        assert longest_holders(self.tree, key) == (self.seen[known[-1]] if known else set())

    @invariant()
    def every_block_is_kept_once(self) -> None:
        assert self.tree.kept_bytes == BLOCK_BYTES * len(self.seen)
        assert len(self.tree) <= len(self.seen)


class Bounded(RuleBasedStateMachine):
    """However small its bounds, the tree keeps them, forgets ends before beginnings, and invents nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = PrefixTree(max_bytes=8 * BLOCK_BYTES, max_nodes=4)
        self.seen: dict[bytes, set[str]] = {}

    @rule(key=keys, worker_id=worker_ids)
    def insert(self, key: bytes, worker_id: str) -> None:
        self.tree.insert(key, worker_id)
        for beginning in blocks(key):
            self.seen.setdefault(beginning, set()).add(worker_id)
        if blocks(key) and self.tree.match(key).matched_bytes:
            assert worker_id in longest_holders(self.tree, key)

    @rule(key=keys)
    def match(self, key: bytes) -> None:
        match = self.tree.match(key)
        if match.matched_bytes:
            assert longest_holders(self.tree, key) <= self.seen[key[: match.matched_bytes]]

    @rule(left=st.sets(worker_ids))
    def retain(self, left: set[str]) -> None:
        self.tree.retain(left)
        for held in self.seen.values():
            held &= left

    @invariant()
    def bounds_hold(self) -> None:
        assert self.tree.kept_bytes <= 8 * BLOCK_BYTES and len(self.tree) <= 4
        assert (self.tree.kept_bytes == 0) == (len(self.tree) == 0)


BesideNaive.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestBesideNaive = BesideNaive.TestCase
Bounded.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestBounded = Bounded.TestCase


def text(name: str, count: int = 2) -> bytes:
    return b"".join(f"{name} {index}".encode().ljust(BLOCK_BYTES, b".") for index in range(count))


def test_what_was_unused_for_longest_is_forgotten_first() -> None:
    tree = PrefixTree(max_nodes=2)
    tree.insert(text("a"), "w")
    tree.insert(text("b"), "w")
    tree.insert(text("a"), "w")
    tree.insert(text("c"), "w")
    known = [name for name in "abc" if tree.match(text(name)).matched_bytes]
    assert known == ["a", "c"]


def test_shared_beginnings_are_kept_once_and_outlive_their_ends() -> None:
    tree = PrefixTree(max_bytes=8 * BLOCK_BYTES)
    for name in "abcdef":
        tree.insert(text("system", 4) + text(name), "w")
    assert tree.kept_bytes <= 8 * BLOCK_BYTES
    assert tree.match(text("system", 4) + text("a")).matched_bytes == 4 * BLOCK_BYTES
    assert tree.match(text("system", 4) + text("f")).matched_bytes == 6 * BLOCK_BYTES


def test_a_long_key_is_known_by_its_beginning() -> None:
    tree = PrefixTree()
    key = text("long", MAX_KEY_BYTES // BLOCK_BYTES)
    tree.insert(key + text("one", 100), "w")
    assert tree.kept_bytes == MAX_KEY_BYTES
    assert tree.match(key + text("two", 100)).matched_bytes == MAX_KEY_BYTES


def test_the_latest_holders_are_remembered() -> None:
    tree = PrefixTree()
    for number in range(MAX_HOLDERS + 3):
        tree.insert(text("a"), f"w{number}")
    tree.insert(text("a"), "w4")
    tree.insert(text("a"), "another")
    holders = longest_holders(tree, text("a"))
    assert len(holders) == prefix_tree.MAX_HOLDERS and {"w4", "another"} <= holders and "w3" not in holders
