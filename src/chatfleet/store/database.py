"""Stored completions in an SQLite file, which several processes may share. Everything here blocks.

A completion goes when it is deleted, when it is too old, or when there are too many or too much and it is the oldest.
For a while after that its place in the order stays known, so that a list can be gone through while it shrinks.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from chatfleet.store.errors import CompletionNotFound, StoreFailure
from chatfleet.store.records import Record

Order = Literal["asc", "desc"]

BUSY_S: Final = 2.0
"""How long another process may keep the file locked."""

MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of what is listed at once: past it a page ends early, but not before its first entry."""

_APPLICATION_ID: Final = 0x43464C54
_GONE_S: Final = 86400.0
_MAX_GONE: Final = 100_000

_SCHEMAS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE completions (
            number INTEGER PRIMARY KEY AUTOINCREMENT, owner BLOB NOT NULL, id TEXT NOT NULL, created INTEGER NOT NULL,
            stored_at REAL NOT NULL, asked TEXT NOT NULL, model TEXT NOT NULL, size INTEGER NOT NULL,
            metadata BLOB NOT NULL, messages BLOB NOT NULL, completion BLOB NOT NULL, UNIQUE (owner, id))""",
        "CREATE INDEX by_time ON completions (owner, created, number)",
        "CREATE INDEX by_age ON completions (stored_at)",
        "CREATE TABLE totals (owner BLOB PRIMARY KEY, count INTEGER NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID",
        """CREATE TABLE gone (
            number INTEGER PRIMARY KEY, owner BLOB NOT NULL, id TEXT NOT NULL, created INTEGER NOT NULL,
            gone_at REAL NOT NULL)""",
        "CREATE INDEX gone_by_id ON gone (owner, id)",
        """CREATE TRIGGER counted AFTER INSERT ON completions BEGIN
            INSERT INTO totals VALUES (new.owner, 1, new.size)
                ON CONFLICT (owner) DO UPDATE SET count = count + 1, size = size + excluded.size;
        END""",
        """CREATE TRIGGER uncounted AFTER DELETE ON completions BEGIN
            UPDATE totals SET count = count - 1, size = size - old.size WHERE owner = old.owner;
            DELETE FROM totals WHERE owner = old.owner AND count = 0;
            INSERT INTO gone VALUES
                (old.number, old.owner, old.id, old.created, CAST(strftime('%s', 'now') AS INTEGER));
        END""",
    ),
)
"""What leads from each version of the schema to the next one."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is kept at most: completions of one owner and of all, bytes of all, and for how many seconds."""

    per_owner: int
    total: int
    size: int
    age_s: float


@dataclass(frozen=True, slots=True)
class Kept:
    """A completion and its metadata, both as JSON."""

    id: str
    completion: bytes
    metadata: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted: what is behind the entry called `after`, `limit` at most."""

    after: str | None
    limit: int
    order: Order


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which completions of an owner: of a model, by the name in the request or in the answer, and with all of this
    metadata."""

    model: str | None
    metadata: Mapping[str, str]


class Database:
    """To be used by one thread at a time. The file is made by the first `put`, readable by its user alone.

    All methods raise StoreFailure when the file cannot be used; the next call tries again.
    """

    def __init__(
        self, path: Path, bounds: Bounds, *, busy_s: float = BUSY_S, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._bounds = bounds
        self._busy_s = busy_s
        self._clock = clock
        self._connection: sqlite3.Connection | None = None

    def check(self) -> None:
        """See whether the file, if there is one, can be used."""
        with self._reading() as connection:
            if connection is not None:
                connection.execute("SELECT count(*) FROM totals").fetchone()

    def put(self, record: Record) -> None:
        """Keep a completion, in place of one with the same id, and let go of what is too much then."""
        with self._changing() as connection:
            connection.execute("DELETE FROM completions WHERE owner = ? AND id = ?", (record.owner, record.id))
            connection.execute(
                "INSERT INTO completions (owner, id, created, stored_at, asked, model, size, metadata, messages, "
                "completion) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.owner,
                    record.id,
                    record.created,
                    self._clock(),
                    record.asked,
                    record.model,
                    record.size,
                    record.metadata,
                    record.messages,
                    record.completion,
                ),
            )
            self._let_go(connection)

    def get(self, owner: bytes, completion_id: str) -> Kept:
        """Raises CompletionNotFound."""
        return Kept(completion_id, *self._row("completion, metadata", owner, completion_id))

    def messages(self, owner: bytes, completion_id: str) -> bytes:
        """Of the request, as JSON. Raises CompletionNotFound."""
        (messages,) = self._row("messages", owner, completion_id)
        return messages

    def list(self, owner: bytes, wanted: Wanted, page: Page) -> tuple[list[Kept], bool]:
        """A page, and whether there is more behind it. Raises CompletionNotFound for an unknown `after`."""
        with self._reading() as connection:
            if connection is None:
                if page.after is not None:
                    raise CompletionNotFound(page.after, param="after")
                return [], False
            conditions, values = ["owner = ?", "stored_at >= ?"], [owner, self._oldest()]
            if page.after is not None:
                conditions.append(f"(created, number) {'>' if page.order == 'asc' else '<'} (?, ?)")
                values += self._place(connection, owner, page.after)
            if wanted.model is not None:
                conditions.append("(model = ? OR asked = ?)")
                values += [wanted.model, wanted.model]
            for pair in wanted.metadata.items():
                conditions.append(
                    "EXISTS (SELECT 1 FROM json_each(CAST(metadata AS TEXT)) WHERE key = ? AND value = ?)"
                )
                values += pair
            rows = connection.execute(
                f"SELECT id, completion, metadata FROM completions WHERE {' AND '.join(conditions)} "
                f"ORDER BY created {page.order}, number {page.order} LIMIT ?",
                (*values, page.limit + 1),
            )
            return _page(rows, page.limit)

    def update(self, owner: bytes, completion_id: str, metadata: bytes) -> Kept:
        """Give a completion other metadata. Raises CompletionNotFound."""
        kept = self.get(owner, completion_id)  # without it there may be no file, and none is to be made
        with self._changing() as connection:
            changed = connection.execute(
                "UPDATE completions SET metadata = ? WHERE owner = ? AND id = ?", (metadata, owner, completion_id)
            )
            if not changed.rowcount:
                raise CompletionNotFound(completion_id)
        return Kept(completion_id, kept.completion, metadata)

    def delete(self, owner: bytes, completion_id: str) -> None:
        """Raises CompletionNotFound."""
        self.get(owner, completion_id)
        with self._changing() as connection:
            connection.execute("DELETE FROM completions WHERE owner = ? AND id = ?", (owner, completion_id))

    def expire(self) -> None:
        """Let go of what is too old or too much."""
        with self._reading() as connection:
            if connection is None:
                return
        with self._changing() as connection:
            self._let_go(connection)

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _oldest(self) -> float:
        return self._clock() - self._bounds.age_s

    def _row(self, columns: str, owner: bytes, completion_id: str) -> tuple[bytes, ...]:
        with self._reading() as connection:
            if connection is not None:
                row: tuple[bytes, ...] | None = connection.execute(
                    f"SELECT {columns} FROM completions WHERE owner = ? AND id = ? AND stored_at >= ?",
                    (owner, completion_id, self._oldest()),
                ).fetchone()
                if row is not None:
                    return row
        raise CompletionNotFound(completion_id)

    def _place(self, connection: sqlite3.Connection, owner: bytes, completion_id: str) -> tuple[int, int]:
        """Where a completion stands in the order of its owner's, or stood."""
        row: tuple[int, int] | None = connection.execute(
            "SELECT created, number FROM completions WHERE owner = ?1 AND id = ?2 "
            "UNION ALL SELECT created, number FROM gone WHERE owner = ?1 AND id = ?2 ORDER BY number DESC LIMIT 1",
            (owner, completion_id),
        ).fetchone()
        if row is None:
            raise CompletionNotFound(completion_id, param="after")
        return row

    def _let_go(self, connection: sqlite3.Connection) -> None:
        bounds = self._bounds
        connection.execute("DELETE FROM completions WHERE stored_at < ?", (self._oldest(),))
        greedy = connection.execute("SELECT owner, count FROM totals WHERE count > ?", (bounds.per_owner,)).fetchall()
        for owner, count in greedy:
            _drop_oldest(connection, count - bounds.per_owner, "WHERE owner = ?", owner)
        (count,) = connection.execute("SELECT coalesce(sum(count), 0) FROM totals").fetchone()
        _drop_oldest(connection, count - bounds.total)
        while connection.execute("SELECT coalesce(sum(size), 0) FROM totals").fetchone()[0] > bounds.size:
            _drop_oldest(connection, 1)
        connection.execute(
            "DELETE FROM gone WHERE gone_at < ? OR number <= (SELECT max(number) FROM gone) - ?",
            (self._clock() - _GONE_S, _MAX_GONE),
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """None where there is no file."""
        with self._failing():
            yield None if self._connection is None and not self.path.exists() else self._open()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        with self._failing():
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as exc:
            self.close()  # so that a file that is put in its place is taken
            raise StoreFailure(f"{self.path}: {_reason(exc)}") from exc

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)  # SQLite's own files get its mode
            try:
                if os.fstat(descriptor).st_mode & 0o077:
                    os.fchmod(descriptor, 0o600)
            finally:
                os.close(descriptor)
            connection = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection, time.monotonic() + self._busy_s)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection


def _page(rows: Iterator[tuple[str, bytes, bytes]], limit: int) -> tuple[list[Kept], bool]:
    page: list[Kept] = []
    size = 0
    for completion_id, completion, metadata in rows:
        size += len(completion) + len(metadata)
        if len(page) == limit or (page and size > MAX_PAGE_BYTES):
            return page, True
        page.append(Kept(completion_id, completion, metadata))
    return page, False


def _drop_oldest(connection: sqlite3.Connection, count: int, which: str = "", *values: bytes) -> None:
    if count > 0:
        connection.execute(
            f"DELETE FROM completions WHERE number IN (SELECT number FROM completions {which} ORDER BY number LIMIT ?)",
            (*values, count),
        )


def _prepare(connection: sqlite3.Connection, until: float) -> None:
    """Make the schema what it has to be. Raises sqlite3.Error."""
    _use_write_ahead_log(connection, until)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA secure_delete = ON")
    if _version(connection) == len(_SCHEMAS):
        return
    connection.execute("BEGIN IMMEDIATE")
    version = _version(connection)  # another process may have been faster
    for schema in _SCHEMAS[version:]:
        for statement in schema:
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {len(_SCHEMAS)}")
    connection.execute("COMMIT")


def _use_write_ahead_log(connection: sqlite3.Connection, until: float) -> None:
    """SQLite does not wait here for another process that does the same. Raises sqlite3.Error."""
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _version(connection: sqlite3.Connection) -> int:
    """Raises sqlite3.DatabaseError for a file that is not ours, or of a later ChatFleet."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != _APPLICATION_ID:
        raise sqlite3.DatabaseError("it is a database of another program")
    if version > len(_SCHEMAS):
        raise sqlite3.DatabaseError("a later version of ChatFleet has made it")
    return int(version)


def _reason(error: Exception) -> str:
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    if isinstance(error, sqlite3.OperationalError | OSError):
        return f"{reason}. See that its folder has room and may be written, and that nothing keeps the file locked"
    return f"{reason}. Move it away, or name another with --store-path"
