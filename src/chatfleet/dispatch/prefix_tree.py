"""Which worker has seen which beginnings of prompts: a bounded radix tree over bytes."""

from collections.abc import Collection, Iterator
from typing import Final

BLOCK_BYTES: Final = 64
"""Keys are compared and kept in whole blocks. About 16 tokens of English: less is not worth a detour."""

MAX_KEY_BYTES: Final = 64 * 1024
"""What is looked at of a key, so that a long one costs no more: some 10 us."""

MAX_TREE_BYTES: Final = 16 * 1024 * 1024
MAX_NODES: Final = 16_384
MAX_HOLDERS: Final = 16
"""Workers remembered of one beginning: the last that got it."""


class _Node:
    """The bytes from its parent's end to its own, and who has seen all that leads here, the latest last."""

    __slots__ = ("children", "holders", "label", "parent")

    def __init__(self, label: bytes, parent: "_Node | None", holders: dict[str, None]) -> None:
        self.label = label
        self.parent = parent
        self.holders = holders
        self.children: dict[bytes, _Node] = {}  # by the first block of their labels


class Match:
    """How far a key is known: `matched_bytes`, along `nodes` from the root's child on."""

    __slots__ = ("matched_bytes", "nodes")

    def __init__(self, nodes: list[_Node], matched_bytes: int) -> None:
        self.nodes = nodes
        self.matched_bytes = matched_bytes

    def holders(self) -> Iterator[Collection[str]]:
        """Who has seen it: ids of workers, of the longest beginning first, and of ever shorter ones after that."""
        return (node.holders for node in reversed(self.nodes) if node.holders)


class PrefixTree:
    """Remembers by worker the beginnings of keys, each in whole blocks of BLOCK_BYTES.

    What was not used for longest is forgotten, from the ends on, when there are more than `max_bytes` of labels or
    `max_nodes` of them.
    """

    def __init__(self, *, max_bytes: int = MAX_TREE_BYTES, max_nodes: int = MAX_NODES) -> None:
        self._max_bytes = max_bytes
        self._max_nodes = max_nodes
        self._root = _Node(b"", None, {})
        self._used: dict[_Node, None] = {}  # the longest unused first; always a node before its parent
        self._bytes = 0
        self._workers: set[str] = set()

    @property
    def kept_bytes(self) -> int:
        return self._bytes

    def __len__(self) -> int:
        """Nodes."""
        return len(self._used)

    def match(self, key: bytes) -> Match:
        """The longest known beginning of `key`. Changes nothing."""
        node, at, nodes = self._root, 0, list[_Node]()
        while (child := node.children.get(key[at : at + BLOCK_BYTES])) is not None:
            nodes.append(child)
            shared = _shared_bytes(child.label, key, at)
            at += shared
            if shared < len(child.label):
                break
            node = child
        return Match(nodes, at)

    def insert(self, key: bytes, worker_id: str) -> None:
        """The worker has seen `key` now."""
        end = min(len(key), MAX_KEY_BYTES) // BLOCK_BYTES * BLOCK_BYTES
        node, at, path = self._root, 0, list[_Node]()
        while at < end:
            first = key[at : at + BLOCK_BYTES]
            child = node.children.get(first)
            if child is None:
                child = self._add(node, key[at:end])
            else:
                shared = _shared_bytes(child.label, key, at, end)
                if shared < len(child.label):
                    child = self._split(child, shared)
            _hold(child, worker_id)
            path.append(child)
            at += len(child.label)
            node = child
        if path:
            self._workers.add(worker_id)
        for used in reversed(path):
            self._used.pop(used, None)
            self._used[used] = None
        while self._bytes > self._max_bytes or len(self._used) > self._max_nodes:
            self._remove(next(iter(self._used)))

    def retain(self, worker_ids: Collection[str]) -> None:
        """Forget all other workers."""
        gone = self._workers.difference(worker_ids)
        if not gone:
            return
        self._workers -= gone
        for node in list(self._used):  # children first, so that a parent without any is seen to be one
            for worker_id in gone & node.holders.keys():
                del node.holders[worker_id]
            if not node.holders and not node.children:
                self._remove(node)

    def _add(self, parent: _Node, label: bytes) -> _Node:
        node = parent.children[label[:BLOCK_BYTES]] = _Node(label, parent, {})
        self._bytes += len(label)
        return node

    def _split(self, node: _Node, at: int) -> _Node:
        """A new node of the first `at` bytes of `node`, in its place and before it."""
        assert node.parent is not None
        upper = _Node(node.label[:at], node.parent, dict(node.holders))
        node.parent.children[upper.label[:BLOCK_BYTES]] = upper
        node.label, node.parent = node.label[at:], upper
        upper.children[node.label[:BLOCK_BYTES]] = node
        return upper

    def _remove(self, leaf: _Node) -> None:
        assert leaf.parent is not None and not leaf.children
        del leaf.parent.children[leaf.label[:BLOCK_BYTES]]
        del self._used[leaf]
        self._bytes -= len(leaf.label)


def _hold(node: _Node, worker_id: str) -> None:
    holders = node.holders
    holders.pop(worker_id, None)
    holders[worker_id] = None
    if len(holders) > MAX_HOLDERS:
        del holders[next(iter(holders))]


def _shared_bytes(label: bytes, key: bytes, at: int, end: int = MAX_KEY_BYTES) -> int:
    """How many bytes, in whole blocks, `label` and `key` from `at` to `end` have in common."""
    if at + len(label) <= end and key.startswith(label, at):
        return len(label)
    low, high = 0, min(len(label), end - at, len(key) - at) // BLOCK_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if key.startswith(label[: middle * BLOCK_BYTES], at):
            low = middle
        else:
            high = middle - 1
    return low * BLOCK_BYTES
