"""What in a graph leads to itself: strongly connected components (Tarjan, 1972)."""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from chatfleet.chat.grammar.budget import tick

_Name = TypeVar("_Name", bound=Hashable)


def components(edges: Mapping[_Name, Iterable[_Name]], roots: Iterable[_Name] | None = None) -> list[list[_Name]]:
    """The components of what `roots` (all, if None) lead to, each behind those that its edges lead to."""
    index: dict[_Name, int] = {}
    low: dict[_Name, int] = {}
    stack: list[_Name] = []
    on_stack: set[_Name] = set()
    found: list[list[_Name]] = []
    for root in edges if roots is None else roots:
        if root in index:
            continue
        work = [(root, iter(edges[root]))]
        while work:
            name, targets = work[-1]
            tick()
            if name not in index:
                index[name] = low[name] = len(index)
                stack.append(name)
                on_stack.add(name)
            for target in targets:
                if target not in index:
                    work.append((target, iter(edges.get(target, ()))))
                    break
                if target in on_stack:
                    low[name] = min(low[name], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[name])
                if low[name] == index[name]:
                    cut = len(stack) - 1
                    while stack[cut] != name:
                        cut -= 1
                    found.append(stack[cut:])
                    on_stack -= set(stack[cut:])
                    del stack[cut:]
    return found


def circles(edges: Mapping[_Name, Iterable[_Name]]) -> list[list[_Name]]:
    """The components whose members lead to themselves."""
    return [part for part in components(edges) if len(part) > 1 or part[0] in edges[part[0]]]
