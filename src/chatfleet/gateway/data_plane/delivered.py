"""What a client has got of a stream, kept for when its worker dies."""


class Delivered:
    """The events of a stream so far, up to `max_bytes`; past that only their end, and the stream cannot be taken up
    by another worker."""

    __slots__ = ("_max_bytes", "_pieces", "_size", "is_whole")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self.is_whole = True

    def add(self, events: bytes) -> None:
        self._pieces.append(events)
        self._size += len(events)
        if self._size > self._max_bytes:
            self.is_whole = False
            del self._pieces[:-2]

    def tail(self) -> bytes:
        """The last events: the usage among them, where the client asked for it."""
        return b"".join(self._pieces[-2:])
