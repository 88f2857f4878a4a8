"""Pages of the KV cache: who has which, and what is kept for prompts that begin alike. Pure, no tensors."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

SCRATCH_PAGE: Final = 0
"""Belongs to nobody: rows that only pad a step write there."""

_ROOT: Final = 0


class PagePool:
    """`pages` pages of `page_tokens` tokens each, shared by reference count.

    A full page is known by its tokens and all before them, so a prompt that begins like an earlier one gets that
    one's pages. Pages that nobody holds keep their content until they are needed, the longest unused first.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        if pages < 2:
            raise ValueError("a pool has a scratch page and at least one other")
        self.pages = pages
        self.page_tokens = page_tokens
        self._references = [0] * pages
        self._free: OrderedDict[int, None] = OrderedDict((page, None) for page in range(1, pages))
        self._prefixes: dict[tuple[int, tuple[int, ...]], tuple[int, int]] = {}
        """(prefix, the page's tokens) to (page, the prefix that ends with it)."""
        self._key_of: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._last_prefix = _ROOT

    @property
    def tokens(self) -> int:
        """The most tokens of one request."""
        return (self.pages - 1) * self.page_tokens

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """The fraction that requests hold, 0 to 1."""
        return 1 - self.free / (self.pages - 1)

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def take(self, count: int) -> list[int]:
        """`count` pages with nothing of use in them. The caller has seen that as many are free."""
        taken = []
        for _ in range(count):
            page, _ = self._free.popitem(last=False)
            self._forget(page)
            self._references[page] = 1
            taken.append(page)
        return taken

    def give_back(self, pages: Sequence[int]) -> None:
        """Drop one reference to each. A page that is nobody's then is used again before those given back later; the
        last page of a prompt goes before its first, which more prompts share."""
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free[page] = None
                if page not in self._key_of:
                    self._free.move_to_end(page, last=False)

    def withdraw(self, pages: Sequence[int]) -> list[int]:
        """Those of `pages` that nobody else holds. What they hold is not known any more."""
        alone = [page for page in pages if self._references[page] == 1]
        for page in alone:
            self._forget(page)
        return alone

    def match(self, token_ids: Sequence[int]) -> tuple[list[int], int]:
        """The pages that hold a beginning of `token_ids`, now also the caller's, and the prefix they end.

        The last token is never among them: its logits are what the caller wants.
        """
        pages: list[int] = []
        prefix = _ROOT
        for start in range(0, len(token_ids) - self.page_tokens, self.page_tokens):
            found = self._prefixes.get((prefix, tuple(token_ids[start : start + self.page_tokens])))
            if found is None:
                break
            page, prefix = found
            self._free.pop(page, None)
            self._references[page] += 1
            pages.append(page)
        return pages, prefix

    def keep(self, page: int, prefix: int, token_ids: Sequence[int]) -> int:
        """Remember that `page` holds `token_ids` behind `prefix`. Returns the prefix that ends with it."""
        key = (prefix, tuple(token_ids))
        found = self._prefixes.get(key)
        if found is not None:  # two requests computed the same at once: one of the pages is enough
            return found[1]
        self._last_prefix += 1
        self._prefixes[key] = (page, self._last_prefix)
        self._key_of[page] = key
        return self._last_prefix

    def forget_all(self) -> None:
        """Nobody holds anything, and nothing is known."""
        self.__init__(self.pages, self.page_tokens)  # type: ignore[misc]

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._prefixes[key]
