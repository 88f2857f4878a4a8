"""Stored completions without sockets: streams made whole, and the database with its bounds and its bad days."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatfleet.store.database import MAX_PAGE_BYTES, Bounds, Database, Order, Page, Wanted
from chatfleet.store.errors import CompletionNotFound, NotWhole, StoreFailure, StoreUnavailable
from chatfleet.store.merging import merged
from chatfleet.store.records import Exchanged, Record, owner_of, record_of
from chatfleet.store.shown import messages_json
from chatfleet.store.store import MAX_COMPLETION_BYTES, MAX_HELD_BYTES, CompletionStore
from support.wire import Json, user

ANY = Bounds(per_owner=1000, total=1000, size=2**30, age_s=1e6)
ALL = Wanted(None, {})


def sse(*payloads: Any) -> bytes:
    texts = [payload if isinstance(payload, str) else json.dumps(payload) for payload in payloads]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def chunk(*choices: Json, **fields: Any) -> Json:
    envelope = {"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    return {**envelope, "choices": list(choices), **fields}


def piece(index: int, finish_reason: str | None = None, **delta: Any) -> Json:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


# --- streams made whole ---

texts = st.text(max_size=12)
calls = st.lists(st.tuples(st.text(min_size=1, max_size=5), texts), max_size=3)
answers = st.lists(
    st.tuples(
        st.none() | st.text(min_size=1, max_size=12),
        st.none() | st.text(min_size=1, max_size=12),
        st.none() | st.text(min_size=1, max_size=12),
        calls,
        st.none() | st.lists(texts, min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


def whole_choice(index: int, content: Any, refusal: Any, reasoning: Any, calls: Any, tokens: Any) -> Json:
    message: Json = {"role": "assistant", "content": content, "refusal": refusal}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for number, (name, arguments) in enumerate(calls)
        ]
    logprobs = None
    if tokens is not None:
        logprobs = {"content": [{"token": token, "logprob": -1.0, "top_logprobs": []} for token in tokens]}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": "stop"}


def cut(data: st.DataObject, text: str) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def deltas(data: st.DataObject, choice: Json) -> list[Json]:
    """A choice as the chunks that bring it, in an order that keeps each text's own."""
    index, message = choice["index"], choice["message"]
    found = [piece(index, role="assistant", content=None)]
    for name in ("reasoning_content", "content", "refusal"):
        if message.get(name) is not None:
            found += [piece(index, **{name: part}) for part in cut(data, message[name])]
    for number, call in enumerate(message.get("tool_calls", [])):
        function = {"name": call["function"]["name"], "arguments": ""}
        found.append(piece(index, tool_calls=[{**call, "index": number, "function": function}]))
        for part in cut(data, call["function"]["arguments"]):
            found.append(piece(index, tool_calls=[{"index": number, "function": {"arguments": part}}]))
    for entry in (choice["logprobs"] or {}).get("content", []):
        found.append({**piece(index), "logprobs": {"content": [entry]}})
    return [*found, piece(index, choice["finish_reason"])]


@given(answers, st.data(), st.booleans(), st.booleans())
def test_a_merged_stream_is_the_whole_answer(
    parts: list[Any], data: st.DataObject, has_usage: bool, has_comments: bool
) -> None:
    choices = [whole_choice(index, *part) for index, part in enumerate(parts)]
    waiting = [deltas(data, choice) for choice in choices]
    stream: list[Json] = []
    while any(waiting):  # the choices take turns
        turn = data.draw(st.sampled_from([queue for queue in waiting if queue]))
        stream.append(chunk(turn.pop(0), system_fingerprint="fp", usage=None))
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    if has_usage:
        stream.append(chunk(system_fingerprint="fp", usage=usage))
    events = sse(*stream, "[DONE]")
    if has_comments:
        events = b": keep-alive\n\n" + events.replace(b"data:", b": a comment\nevent: message\ndata:")
    envelope = {"id": "c", "object": "chat.completion", "created": 5, "model": "m", "system_fingerprint": "fp"}
    expected = {**envelope, "choices": choices, **({"usage": usage} if has_usage else {})}
    assert merged(events) == expected


def test_fields_of_others_are_merged_too() -> None:
    """vLLM's token ids, its empty lists of calls, and a reason that is said twice."""
    first = {**piece(0, content="a", tool_calls=[]), "token_ids": [1], "stop_reason": None}
    last = {**piece(0, "stop", content="b", tool_calls=[]), "token_ids": [2, 3], "stop_reason": "x"}
    end = {**piece(0, "stop"), "stop_reason": "y"}
    (choice,) = merged(sse(chunk(first), chunk(last), chunk(end), "[DONE]"))["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ab", "refusal": None, "tool_calls": []}
    assert (choice["token_ids"], choice["stop_reason"], choice["finish_reason"]) == ([1, 2, 3], "y", "stop")


def test_an_older_function_call_is_merged() -> None:
    begin = piece(0, role="assistant", content="", function_call={"name": "f", "arguments": "{"})
    end = piece(0, "function_call", function_call={"arguments": "}"})
    (choice,) = merged(sse(chunk(begin), chunk(end)))["choices"]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert choice["message"]["content"] is None


@pytest.mark.parametrize(
    "events",
    [
        b"",
        sse("[DONE]"),
        sse(chunk(piece(0, content="a")), "[DONE]"),
        sse(chunk(piece(0, "stop", content="a"), piece(1)), "[DONE]"),
        sse(chunk(piece(0, "stop", content="a")), {"error": {"message": "x"}}),
        sse("no json"),
        sse([1]),
        sse({"id": "c"}),
        sse(chunk({"delta": {}})),
        sse(chunk(piece(0, content="a")), chunk(piece(0, "stop", content={"a": 1}))),
        sse(chunk(piece(0, content=["a"])), chunk(piece(0, "stop", content={"a": 1}))),
        sse(chunk(piece(0, tool_calls=[{"index": 0}, "x"]))),
        sse(chunk(piece(0, tool_calls=[{"index": []}]))),
        b"data: \xff\n\n",
    ],
)
def test_what_is_no_whole_stream_is_not_made_one(events: bytes) -> None:
    with pytest.raises(NotWhole):
        merged(events)


def test_a_long_stream_is_merged_in_linear_time() -> None:
    events = sse(*[chunk(piece(0, content="a" * 50))] * 20_000, chunk(piece(0, "stop")), "[DONE]")
    (choice,) = merged(events)["choices"]
    assert len(choice["message"]["content"]) == 1_000_000


# --- what is kept ---


def exchanged(**request: Any) -> Exchanged:
    asked = {"model": "asked", "messages": user("hi"), **request}
    answer = {"id": "c", "created": 5, "model": "m", "choices": []}
    return Exchanged(b"owner", "req", json.dumps(asked).encode(), json.dumps(answer).encode(), is_stream=False)


def test_a_record_has_what_was_asked_for() -> None:
    record = record_of(exchanged(metadata={"a": "b"}, tools=[{"x": 1}], seed=3, user="me", store=True))
    completion = json.loads(record.completion)
    assert (completion["tools"], completion["seed"], completion["input_user"]) == ([{"x": 1}], 3, "me")
    assert completion["temperature"] is None and "metadata" not in completion and "store" not in completion
    assert (record.id, record.created, record.asked, record.model) == ("c", 5, "asked", "m")
    assert json.loads(record.metadata) == {"a": "b"} and json.loads(record.messages) == user("hi")


@pytest.mark.parametrize("answer", [{"choices": []}, {"choices": [], "id": 5, "created": "x", "model": None}])
def test_an_answer_that_lacks_its_envelope_gets_one(answer: Json) -> None:
    record = record_of(replace(exchanged(), answer=json.dumps(answer).encode()))
    assert record.id.startswith("chatcmpl-") and record.created > 1e9 and record.model == "asked"
    assert json.loads(record.completion)["id"] == record.id


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"choices": 1}', b"\xff"])
def test_what_is_no_answer_is_not_kept(answer: bytes) -> None:
    with pytest.raises(NotWhole):
        record_of(replace(exchanged(), answer=answer))


def test_metadata_that_is_not_text_is_left_out() -> None:
    assert json.loads(record_of(exchanged(metadata={"a": 1, "b": "c"})).metadata) == {"b": "c"}
    assert json.loads(record_of(exchanged(metadata=["a"])).metadata) == {}


def test_keys_are_owners_and_only_as_digests() -> None:
    first, second = owner_of("Bearer secret"), owner_of("bearer  secret ")
    assert first == second != owner_of("Bearer other")
    assert len(first) == 32 and b"secret" not in first
    assert owner_of(None) == b""


def test_messages_have_ids_and_parts_of_their_own() -> None:
    parts = [{"type": "text", "text": "a"}]
    calls = [{"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [*user("hi"), {"role": "user", "content": parts}, {"role": "assistant", "tool_calls": calls}]
    shown = json.loads(messages_json("c", json.dumps(messages).encode(), Page(None, 20, "asc")))
    one, two, three = shown["data"]
    assert one == {"id": "c-0", "role": "user", "content": "hi", "content_parts": None, "name": None, "refusal": None}
    assert (two["content"], two["content_parts"]) == (None, parts)
    assert (three["content"], three["tool_calls"]) == (None, calls)
    assert (shown["first_id"], shown["last_id"], shown["has_more"]) == ("c-0", "c-2", False)


# --- the database ---


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(name: str, *, owner: bytes = b"o", created: int = 5, size: int = 100, **metadata: str) -> Record:
    completion = json.dumps({"id": name, "filler": "x" * max(0, size)}).encode()
    return Record(owner, name, created, "asked", "m", json.dumps(metadata).encode(), b"[]", completion)


def database(path: Path, bounds: Bounds = ANY, clock: Clock | None = None) -> Database:
    return Database(path / "store.db", bounds, busy_s=0.05, clock=clock or Clock())


def page(after: str | None = None, limit: int = 100, order: Order = "asc") -> Page:
    return Page(after, limit, order)


def ids(kept: Database, *, owner: bytes = b"o", wanted: Wanted = ALL, at: Page | None = None) -> list[str]:
    return [one.id for one in kept.list(owner, wanted, at or page())[0]]


def all_ids(kept: Database, limit: int, order: Order) -> list[str]:
    """Page by page."""
    found: list[str] = []
    while True:
        entries, has_more = kept.list(b"o", ALL, page(found[-1] if found else None, limit, order))
        found += [entry.id for entry in entries]
        if not has_more:
            return found
        assert entries


@settings(max_examples=20)  # each makes a file
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 9))
def test_pages_in_any_order_have_everything_once(tmp_path_factory: Any, times: list[int], limit: int) -> None:
    kept = database(tmp_path_factory.mktemp("store"))
    for number, created in enumerate(times):
        kept.put(record(str(number), created=created))
    expected = [str(number) for number, _ in sorted(enumerate(times), key=lambda pair: (pair[1], pair[0]))]
    assert all_ids(kept, limit, "asc") == expected
    assert all_ids(kept, limit, "desc") == expected[::-1]
    kept.close()


def test_a_list_can_be_deleted_while_it_is_read(tmp_path: Path) -> None:
    kept = database(tmp_path)
    for number in range(5):
        kept.put(record(str(number)))
    found: list[str] = []
    while entries := kept.list(b"o", ALL, page(found[-1] if found else None, 2))[0]:
        found += [entry.id for entry in entries]
        for entry in entries:
            kept.delete(b"o", entry.id)
    assert found == ["0", "1", "2", "3", "4"]


def test_lists_are_of_a_model_and_of_metadata(tmp_path: Path) -> None:
    kept = database(tmp_path)
    kept.put(record("one", a="1", **{'o"d.d[$]': "é"}))
    kept.put(replace(record("two", a="1"), asked="alias", model="n"))
    assert ids(kept, wanted=Wanted("m", {})) == ids(kept, wanted=Wanted("asked", {})) == ["one"]
    assert ids(kept, wanted=Wanted("alias", {})) == ids(kept, wanted=Wanted("n", {"a": "1"})) == ["two"]
    assert ids(kept, wanted=Wanted(None, {"a": "1"})) == ["one", "two"]
    assert ids(kept, wanted=Wanted(None, {"a": "1", 'o"d.d[$]': "é"})) == ["one"]
    assert ids(kept, wanted=Wanted(None, {"a": "2"})) == ids(kept, wanted=Wanted("x", {})) == []


def test_owners_do_not_see_each_other(tmp_path: Path) -> None:
    kept = database(tmp_path)
    kept.put(record("one", owner=b"a"))
    kept.put(record("one", owner=b"b", x="y"))
    assert kept.get(b"a", "one").metadata == b"{}"
    kept.delete(b"b", "one")
    assert ids(kept, owner=b"a") == ["one"]
    for look in (kept.get, kept.messages, kept.delete):
        with pytest.raises(CompletionNotFound):
            look(b"b", "one")
    with pytest.raises(CompletionNotFound):
        kept.update(b"b", "one", b"{}")
    kept.put(record("two", owner=b"b"))
    for after in ("one", "unknown"):
        with pytest.raises(CompletionNotFound):
            kept.list(b"c", ALL, page(after))


def test_the_same_id_again_takes_the_place(tmp_path: Path) -> None:
    kept = database(tmp_path, replace(ANY, per_owner=2))
    for name in ("one", "two", "one"):
        kept.put(record(name))
    assert ids(kept) == ["two", "one"]


def test_metadata_can_change(tmp_path: Path) -> None:
    kept = database(tmp_path)
    kept.put(record("one", a="1"))
    assert kept.update(b"o", "one", b'{"b": "2"}').metadata == b'{"b": "2"}'
    assert ids(kept, wanted=Wanted(None, {"b": "2"})) == ["one"]
    assert ids(kept, wanted=Wanted(None, {"a": "1"})) == []


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        (replace(ANY, per_owner=2), ["a0", "b2", "b3"]),
        (replace(ANY, total=2), ["b2", "b3"]),
        (replace(ANY, size=400), ["b1", "b2", "b3"]),
        (replace(ANY, size=1), []),
    ],
)
def test_the_oldest_go_when_there_is_too_much(tmp_path: Path, bounds: Bounds, left: Sequence[str]) -> None:
    kept = database(tmp_path, bounds)
    for name, owner in (("a0", b"a"), ("b1", b"o"), ("b2", b"o"), ("b3", b"o")):
        kept.put(record(name, owner=owner))
    assert ids(kept, owner=b"a") + ids(kept) == left


def test_what_is_too_old_is_not_shown_and_goes(tmp_path: Path) -> None:
    clock = Clock()
    kept = database(tmp_path, replace(ANY, age_s=10), clock)
    kept.put(record("old"))
    clock.now += 6
    kept.put(record("new"))
    clock.now += 6
    assert ids(kept) == ["new"]
    with pytest.raises(CompletionNotFound):
        kept.get(b"o", "old")
    kept.expire()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("SELECT id FROM completions").fetchall() == [("new",)]
        assert connection.execute("SELECT count FROM totals").fetchall() == [(1,)]
    connection.close()


def test_a_page_is_not_larger_than_it_may_be(tmp_path: Path) -> None:
    kept = database(tmp_path)
    for name in ("0", "1", "2"):
        kept.put(record(name, size=MAX_PAGE_BYTES // 2))
    entries, has_more = kept.list(b"o", ALL, page())
    assert [entry.id for entry in entries] == ["0"] and has_more
    assert all_ids(kept, 100, "asc") == ["0", "1", "2"]


def test_no_file_is_made_to_look_into(tmp_path: Path) -> None:
    kept = database(tmp_path / "folder")
    kept.check()
    kept.expire()
    assert ids(kept) == []
    for look in (kept.get, kept.delete):
        with pytest.raises(CompletionNotFound):
            look(b"o", "one")
    with pytest.raises(CompletionNotFound):
        kept.list(b"o", ALL, page("one"))
    assert not (tmp_path / "folder").exists()


def test_the_file_is_its_users_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "store.db").touch(0o644)
    kept = database(tmp_path / "folder")
    kept.put(record("one"))
    files = list((tmp_path / "folder").iterdir())
    assert len(files) == 3  # with SQLite's own
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_what_is_deleted_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    kept = database(tmp_path)
    kept.put(replace(record("one"), messages=b'["a secret of mine"]'))
    kept.delete(b"o", "one")
    kept.close()  # which moves the log into the file
    assert b"a secret of mine" not in (tmp_path / "store.db").read_bytes()


def test_another_process_reads_and_writes_the_same_file(tmp_path: Path) -> None:
    one, two = database(tmp_path), database(tmp_path)
    one.put(record("one"))
    two.put(record("two"))
    one.put(record("three"))
    assert ids(one) == ids(two) == ["one", "two", "three"]


def test_a_corrupt_file_is_an_error_and_one_put_in_its_place_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is no database" * 1000)
    kept = database(tmp_path)
    for use in (kept.check, kept.expire, lambda: kept.put(record("one"))):
        with pytest.raises(StoreFailure, match=r"store\.db: .*Move it away.*--store-path"):
            use()
    path.unlink()
    kept.put(record("one"))
    assert ids(kept) == ["one"]


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreFailure, match="another program"):
        database(tmp_path).put(record("one"))


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    kept = database(tmp_path)
    kept.put(record("one"))
    kept.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreFailure, match="later version"):
        kept.check()


def test_a_locked_file_is_an_error_for_as_long_as_it_is(tmp_path: Path) -> None:
    kept = database(tmp_path)
    kept.put(record("one"))
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailure, match="locked"):
        kept.put(record("two"))
    assert ids(kept) == ["one"]  # who reads does not wait
    other.execute("ROLLBACK")
    kept.put(record("two"))
    assert ids(kept) == ["one", "two"]
    other.close()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreFailure, match="folder has room"):
        database(tmp_path / "file").put(record("one"))


# --- the way there ---


class Told:
    """What became of answers that were to be kept."""

    def __init__(self) -> None:
        self.outcomes: list[bool] = []

    def __call__(self, is_kept: bool) -> None:
        self.outcomes.append(is_kept)


async def kept_ids(store: CompletionStore) -> list[str]:
    return [one["id"] for one in json.loads(await store.list(b"owner", ALL, page()))["data"]]


def test_what_was_kept_is_there_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        store, told = CompletionStore(database(tmp_path)), Told()
        await store.open()
        for _ in range(20):
            store.keep(exchanged(), told)
        assert told.outcomes == []
        assert await kept_ids(store) == ["c"]
        assert told.outcomes == [True] * 20
        await store.aclose()

    asyncio.run(run())


def test_what_waits_is_written_before_the_end(tmp_path: Path) -> None:
    async def run() -> None:
        store, told = CompletionStore(database(tmp_path)), Told()
        store.keep(exchanged(), told)
        await store.aclose()
        assert told.outcomes == [True]

    asyncio.run(run())
    assert ids(database(tmp_path), owner=b"owner") == ["c"]


def test_a_failure_is_logged_once_until_it_is_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, kept = tmp_path / "store.db", database(tmp_path)

    async def run() -> None:
        store, told = CompletionStore(kept), Told()
        for _ in range(2):
            await asyncio.to_thread(path.write_bytes, b"this is no database" * 1000)
            for _ in range(3):
                store.keep(exchanged(), told)
            with pytest.raises(StoreUnavailable):
                await store.get(b"owner", "c")
            await asyncio.to_thread(path.unlink)
            store.keep(exchanged(), told)
            assert await kept_ids(store) == ["c"]
            await asyncio.to_thread(kept.close)
        assert told.outcomes == [False, False, False, True] * 2
        await store.aclose()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [message.count("cannot be stored") for message in caplog.messages] == [1, 1]
    assert "hi" not in caplog.text.split()


def test_memory_is_bounded_and_given_back(tmp_path: Path) -> None:
    async def run() -> None:
        store, told = CompletionStore(database(tmp_path)), Told()
        large = b"x" * (MAX_COMPLETION_BYTES // 2)
        recordings = [store.recording() for _ in range(MAX_HELD_BYTES // MAX_COMPLETION_BYTES + 1)]
        for recording in recordings:
            recording.add(large)
            recording.add(large)
        recordings[-1].keep_stream(b"o", "r", b"", told)  # there was no room for it
        assert told.outcomes == [False]
        for recording in recordings:
            recording.close()
            recording.close()
        recording = store.recording()
        for _ in range(3):
            recording.add(large)
        recording.keep_stream(b"o", "r", b"", told)  # it is too large
        recording.keep_whole(b"o", "r", large, large + b"x", told)
        assert told.outcomes == [False] * 3
        assert store.hold(MAX_HELD_BYTES) and not store.hold(1)
        await store.aclose()

    asyncio.run(run())
