"""Completions that a gateway keeps for those who asked for that with `store`, through real processes."""

import json
import os
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from support.fake_openai import FakeOpenAI, http_answer, stream_chunk, stream_head
from support.fleet import statuses, until
from support.metrics import scrape
from support.openai_schemas import complaints
from support.processes import ControllerProcess, GatewayProcess, WorkerProcess
from support.raw_upstream import event
from support.wire import Json, RawConnection, chunks, failed, user

CHAT = "/v1/chat/completions"
KEY, OTHER_KEY = "sk-the-first-key", "sk-the-second-key"
ASKED = {
    "request_id",
    "tools",
    "tool_choice",
    "response_format",
    "seed",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "input_user",
}
"""What a stored completion says of its request, as in OpenAI's examples; their description does not have it."""


class Fleet:
    """A worker, a server of strangers, and gateways with one file of stored completions, one gateway at a time."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.controller = stack.enter_context(ControllerProcess())
        self.worker = stack.enter_context(
            WorkerProcess("--controller-url", self.controller.url, "--engine", "simulated", "--sim-itl-ms", "2")
        )
        self.stranger = stack.enter_context(FakeOpenAI("theirs"))
        with self.controller.http() as http:
            assert http.post("/fleet/servers", json={"url": self.stranger.url}).status_code == 200
        self.path = folder / "folder" / "store.db"

    @contextmanager
    def gateway(self, *arguments: str, keys: tuple[str, ...] = (KEY, OTHER_KEY)) -> Iterator[GatewayProcess]:
        arguments = ("--store-path", str(self.path), *(f"--api-key={key}" for key in keys), *arguments)
        with GatewayProcess(
            *arguments,
            controllers=[self.controller],
            models=["simulated", "theirs"],
            api_key=keys[0] if keys else None,
        ) as gateway:
            yield gateway
            assert "Traceback" not in gateway.output, gateway.output


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(stack, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def gateway(fleet: Fleet) -> Iterator[GatewayProcess]:
    with fleet.gateway("--access-log", "--alias", "gpt-4o=simulated") as gateway:
        yield gateway
        assert KEY not in gateway.output and "a secret" not in gateway.output


@pytest.fixture
def http(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    """Of a client who has stored nothing yet."""
    with gateway.http() as client:
        while found := client.get(CHAT, params={"limit": 100}).json()["data"]:
            for one in found:
                assert client.delete(f"{CHAT}/{one['id']}").status_code == 200
        yield client


def sdk(gateway: GatewayProcess, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)


def body(**fields: Any) -> Json:
    return {"model": "simulated", "messages": user("hi"), "max_tokens": 8, "store": True, **fields}


def post(http: httpx.Client, **fields: Any) -> Json:
    response = http.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text
    assert "x-chatfleet-ignored" not in response.headers
    answer: Json = response.json()
    return answer


def get(http: httpx.Client, completion_id: str) -> Json:
    response = http.get(f"{CHAT}/{completion_id}")
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    assert complaints("CreateChatCompletionResponse", without(answer, ASKED)) == []
    return answer


def listed(http: httpx.Client, **params: Any) -> list[Json]:
    response = http.get(CHAT, params=params)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    shown = {**answer, "data": [without(one, ASKED) for one in answer["data"]]}
    assert complaints("ChatCompletionList", shown) == []
    found: list[Json] = answer["data"]
    return found


def without(answer: Json, names: set[str]) -> Json:
    return {name: value for name, value in answer.items() if name not in names}


def test_an_answer_is_kept_as_it_was_sent(http: httpx.Client) -> None:
    sent = post(http, metadata={"team": "a"}, seed=3, user="me", logprobs=True, n=2)
    kept = get(http, sent["id"])
    assert without(kept, ASKED | {"metadata"}) == sent
    assert (kept["metadata"], kept["seed"], kept["input_user"]) == ({"team": "a"}, 3, "me")
    assert kept["tools"] is None and kept["temperature"] is None
    assert listed(http) == [kept]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3, "temperature": 1.0},
        {"logprobs": True, "top_logprobs": 2, "n": 2},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True}, "messages": user("späße 🎉"), "max_tokens": 60},
        {"stop": ["a"], "max_tokens": 50},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]},
    ],
)
def test_a_stream_is_kept_as_the_whole_answer(http: httpx.Client, fields: Json) -> None:
    fields = {"seed": 5, **fields}
    whole = post(http, **without(fields, {"stream_options"}))
    stream = chunks(http.post(CHAT, json=body(stream=True, **fields)))
    kept = get(http, stream[0]["id"])
    own = {"id", "created", "metadata"} | ASKED
    if "stream_options" in fields:
        cached = {"prompt_tokens_details"}
        assert without(kept.pop("usage"), cached) == without(whole.pop("usage"), cached)
    else:
        assert "usage" not in kept
        del whole["usage"]
    assert without(kept, own) == without(whole, own)
    assert [one["id"] for one in listed(http)][-1] == stream[0]["id"]


def test_nothing_is_kept_unasked(http: httpx.Client) -> None:
    for store in (False, None):
        post(http, store=store)
        chunks(http.post(CHAT, json=body(stream=True, store=store)))
    assert http.post(CHAT, json=body(store="yes")).status_code == 400
    assert http.post(CHAT, json=body(max_tokens=-1)).status_code == 400
    refused = http.post("/v1/completions", json={"model": "simulated", "prompt": "hi", "store": True, "max_tokens": 1})
    assert refused.status_code == 200 and refused.headers["x-chatfleet-ignored"] == "store"
    assert listed(http) == []


def test_the_root_and_aliases_are_kept_too(http: httpx.Client) -> None:
    answer = http.post("/", json=body(model="gpt-4o")).json()
    for model in ("gpt-4o", "simulated"):
        assert [one["id"] for one in listed(http, model=model)] == [answer["id"]]


def test_the_official_client_can_do_all_of_it(gateway: GatewayProcess, http: httpx.Client) -> None:
    with sdk(gateway) as client:
        stored = client.chat.completions
        ids = [post(http, metadata={"number": str(number)}, max_tokens=2)["id"] for number in range(5)]
        assert [one.id for one in stored.list(limit=2)] == ids
        assert [one.id for one in stored.list(limit=2, order="desc")] == ids[::-1]
        assert [one.id for one in stored.list(limit=2, after=ids[2])] == ids[3:]
        assert [one.id for one in stored.list(metadata={"number": "3"}, model="simulated")] == [ids[3]]
        assert list(stored.list(model="other")) == []
        assert stored.list(limit=5).has_more is False and stored.list(limit=4).has_more is True
        assert stored.retrieve(ids[1]).metadata == {"number": "1"}
        assert stored.update(ids[1], metadata={"other": "x"}).metadata == {"other": "x"}
        assert stored.retrieve(ids[1]).metadata == {"other": "x"}
        assert [one.id for one in stored.list(metadata={"other": "x"})] == [ids[1]]
        for one in stored.list(limit=2):  # a page after a place that has been deleted
            assert stored.delete(one.id).deleted
        assert list(stored.list()) == []
        with pytest.raises(openai.NotFoundError):
            stored.retrieve(ids[0])


def test_the_official_client_reads_messages(gateway: GatewayProcess, http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "in parts"}]
    conversation: Any = [
        {"role": "system", "content": "Be short."},
        *user("hi"),
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": parts, "name": "me"},
    ]
    completion_id = post(http, messages=conversation)["id"]
    with sdk(gateway) as client:
        messages = client.chat.completions.messages
        found = list(messages.list(completion_id, limit=1))
        assert [one.id for one in found] == [f"{completion_id}-{number}" for number in range(4)]
        assert [one.role for one in found] == ["system", "user", "assistant", "user"]
        assert [one.content for one in found] == ["Be short.", "hi", "Hello.", None]
        assert found[3].content_parts is not None and found[3].content_parts[0].type == "text"
        assert [one.id for one in messages.list(completion_id, order="desc", limit=3)] == [
            one.id for one in found[::-1]
        ]
        assert [one.id for one in messages.list(completion_id, after=found[2].id)] == [found[3].id]
    page = http.get(f"{CHAT}/{completion_id}/messages", params={"limit": 2}).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (found[0].id, found[1].id, True)
    assert complaints("ChatCompletionMessageList", {**page, "data": []}) == []
    failed(http.get(f"{CHAT}/{completion_id}/messages", params={"after": "x"}), 404, param="after")


def test_another_key_sees_and_changes_nothing(gateway: GatewayProcess, http: httpx.Client) -> None:
    completion_id = post(http, messages=user("a secret"))["id"]
    one, messages = f"{CHAT}/{completion_id}", f"{CHAT}/{completion_id}/messages"
    update = {"metadata": {"mine": "now"}}
    with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {OTHER_KEY}"}) as other:
        assert listed(other) == []
        answers = [other.get(one), other.get(messages), other.post(one, json=update), other.delete(one)]
        unknown = other.get(f"{CHAT}/chatcmpl-{'0' * 32}")
        for answer in answers:
            error = failed(answer, 404, code="completion_not_found")
            assert error["message"].replace(completion_id, "") == failed(unknown, 404)["message"].replace(
                f"chatcmpl-{'0' * 32}", ""
            )
        failed(other.get(CHAT, params={"after": completion_id}), 404, param="after")
    with httpx.Client(base_url=gateway.url) as nobody:
        for answer in (nobody.get(one), nobody.get(CHAT), nobody.delete(one), nobody.post(one, json=update)):
            failed(answer, 401, code="invalid_api_key")
    assert get(http, completion_id)["metadata"] == {}


@pytest.mark.parametrize(
    ("params", "param"),
    [({"limit": "0"}, "limit"), ({"limit": "101"}, "limit"), ({"limit": "x"}, "limit"), ({"order": "up"}, "order")],
)
def test_parameters_out_of_range_are_named(http: httpx.Client, params: Json, param: str) -> None:
    completion_id = post(http)["id"]
    failed(http.get(CHAT, params=params), 400, param=param)
    failed(http.get(f"{CHAT}/{completion_id}/messages", params=params), 400, param=param)


def test_unknown_parameters_are_named_as_ignored(http: httpx.Client) -> None:
    assert http.get(CHAT, params={"before": "x", "limit": "3"}).headers["x-chatfleet-ignored"] == "before"
    path = f"{CHAT}/{post(http)['id']}"
    answer = http.post(path, json={"metadata": {"a": "b"}, "model": "x"})
    assert answer.json()["metadata"] == {"a": "b"} and answer.headers["x-chatfleet-ignored"] == "model"


@pytest.mark.parametrize("metadata", ["x", {"a": 1}, {str(number): "x" for number in range(17)}, None])
def test_metadata_is_checked(http: httpx.Client, metadata: Any) -> None:
    path = f"{CHAT}/{post(http, metadata={'a': 'b'})['id']}"
    answer = http.post(path, json={"metadata": metadata})
    if metadata is None:
        assert answer.json()["metadata"] == {}
    else:
        assert failed(answer, 400)["param"].startswith("metadata")
    failed(http.post(path, json={}), 400, param="metadata")
    failed(http.post(path, content=b"{}", headers={"content-type": "text/plain"}), 415)


@pytest.mark.parametrize("name", ["x", "..%2F", "%00", "%ff", "a%20b", "'%22;--", "%F0%9F%8E%89", "x" * 5000, "x?a=b"])
def test_odd_ids_are_not_found(http: httpx.Client, name: str) -> None:
    for method in ("GET", "DELETE"):
        failed(http.request(method, f"{CHAT}/{name}"), 404)
    failed(http.post(f"{CHAT}/{name}", json={"metadata": {}}), 404)


def test_other_methods_are_refused_by_name(http: httpx.Client) -> None:
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS"):
        response = http.request(method, CHAT)
        failed(response, 405, code="method_not_allowed")
        assert response.headers["allow"] == "GET, POST"
    assert http.put(f"{CHAT}/x").headers["allow"] == "DELETE, GET, POST"
    assert http.post(f"{CHAT}/x/messages").headers["allow"] == "GET"
    failed(http.get("/"), 405)


def test_pages_of_other_origins_may_delete(http: httpx.Client) -> None:
    page = {"origin": "https://a.example", "access-control-request-method": "DELETE"}
    preflight = http.options(f"{CHAT}/x", headers=page)
    assert preflight.status_code == 200 and "DELETE" in preflight.headers["access-control-allow-methods"]
    answer = http.delete(f"{CHAT}/x", headers={"origin": "https://a.example"})
    assert answer.status_code == 404 and answer.headers["access-control-allow-origin"] == "*"


def test_a_client_that_leaves_early_stores_nothing(gateway: GatewayProcess, http: httpx.Client) -> None:
    with RawConnection(gateway.url) as connection:
        connection.post(CHAT, body(stream=True, max_tokens=2000, ignore_eos=True), f"authorization: Bearer {KEY}")
        connection.read_head()
        next(connection.read_chunks())
        connection.reset()
    left = until(lambda: scrape(http).total("chatfleet:requests_total", status="499"), "that it has left")
    assert left and listed(http) == []


def test_a_repeat_with_an_idempotency_key_is_kept_once(http: httpx.Client) -> None:
    for stream in (False, True):
        key = {"idempotency-key": f"store-{stream}"}
        answers = [http.post(CHAT, json=body(stream=stream), headers=key).text for _ in range(3)]
        assert len(set(answers)) == 1
    assert len(listed(http)) == 2


def test_a_stranger_is_not_asked_to_store(fleet: Fleet, http: httpx.Client) -> None:
    answer = {"id": "chatcmpl-theirs", "object": "chat.completion", "created": 7, "model": "theirs", "choices": []}
    fleet.stranger.reply = lambda write: write(http_answer(json.dumps(answer).encode()))
    assert post(http, model="theirs", metadata={"a": "b"}) == answer
    asked = json.loads(fleet.stranger.bodies[-1])
    assert "store" not in asked and asked["metadata"] == {"a": "b"}
    kept = get(http, "chatcmpl-theirs")
    assert without(kept, ASKED | {"metadata"}) == answer and kept["metadata"] == {"a": "b"}


@pytest.mark.parametrize("is_well", [True, False])
def test_a_stream_of_a_stranger_is_kept_if_it_ended_well(fleet: Fleet, http: httpx.Client, is_well: bool) -> None:
    envelope = {"id": f"theirs-{is_well}", "object": "chat.completion.chunk", "created": 7, "model": "theirs"}
    first = {**envelope, "choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}}]}
    last = {**envelope, "choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "stop"}]}
    error = {"error": {"message": "no", "type": "t", "param": None, "code": None}}
    parts = [event(json.dumps(part)) for part in (first, last if is_well else error)] + [event("[DONE]")]

    def reply(write: Any) -> None:
        write(stream_head() + b"".join(map(stream_chunk, parts)) + stream_chunk(b""))

    fleet.stranger.reply = reply
    assert http.post(CHAT, json=body(model="theirs", stream=True)).content == b"".join(parts)
    if is_well:
        message = get(http, "theirs-True")["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "ab", "refusal": None}
    else:
        assert listed(http) == []


def test_it_is_counted(http: httpx.Client) -> None:
    before = scrape(http).total("chatfleet:completions_stored_total", model_name="simulated")
    post(http)
    chunks(http.post(CHAT, json=body(stream=True)))
    assert len(listed(http)) == 2
    scraped = scrape(http)
    assert scraped.total("chatfleet:completions_stored_total", model_name="simulated") == before + 2
    assert scraped.total("chatfleet:completions_not_stored_total", model_name="simulated") == 0
    lists = {"model_name": "", "endpoint": CHAT}
    assert scraped.total("chatfleet:requests_total", status="200", **lists) == 0


def test_openapi_has_the_paths(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths[CHAT]) == {"get", "post"}
    assert set(paths[f"{CHAT}/{{completion_id}}"]) == {"get", "post", "delete"}
    assert set(paths[f"{CHAT}/{{completion_id}}/messages"]) == {"get"}


# --- gateways of their own ---


def test_a_gateway_that_comes_back_has_them_within_its_bounds(fleet: Fleet) -> None:
    with fleet.gateway(keys=()) as gateway, gateway.http() as http:
        ids = [post(http)["id"] for _ in range(3)]
    files = list(fleet.path.parent.iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600} and fleet.path in files
    assert fleet.path.parent.stat().st_mode & 0o777 == 0o700
    with fleet.gateway("--store-completions-per-key", "2", keys=()) as gateway:
        for key in ("any", "other"):
            with sdk(gateway, key) as client:
                assert [one.id for one in client.chat.completions.list()] == ids[1:]


@pytest.mark.long
def test_processes_share_them(fleet: Fleet) -> None:
    with fleet.gateway("--processes", "2") as gateway:

        def on_new_connection(method: str, path: str, **more: Any) -> httpx.Response:
            with gateway.http() as http:
                return http.request(method, path, **more)

        ids = set()
        for number in range(8):
            keyed = {"idempotency-key": f"shared-{number}"} if number % 2 else {}
            ids.add(
                on_new_connection("POST", CHAT, json=body(metadata={"of": "processes"}), headers=keyed).json()["id"]
            )
        for _ in range(8):
            assert until(
                lambda: (
                    {
                        one["id"]
                        for one in on_new_connection("GET", CHAT, params={"metadata[of]": "processes"}).json()["data"]
                    }
                    == ids
                ),
                "all of them",
            )


@pytest.mark.long
def test_a_stream_that_another_worker_went_on_with_is_kept_whole(tmp_path: Path) -> None:
    with ExitStack() as stack:
        controller = stack.enter_context(ControllerProcess())
        arguments = ("--controller-url", controller.url, "--engine", "simulated", "--sim-itl-ms", "10")
        workers = [stack.enter_context(WorkerProcess(*arguments)) for _ in range(2)]
        with controller.http() as fleet:
            until(lambda: len(statuses(fleet)) == 2, "two workers")
        gateway = stack.enter_context(
            GatewayProcess("--store-path", str(tmp_path / "s.db"), controllers=[controller], models=["simulated"])
        )
        http = stack.enter_context(gateway.http())
        asked = body(max_tokens=120, ignore_eos=True, logprobs=True)
        whole = http.post(CHAT, json=asked).json()
        connection = stack.enter_context(RawConnection(gateway.url)).post(CHAT, {**asked, "stream": True})
        connection.read_head()
        read = connection.read_chunks()
        seen = b"".join(next(read) for _ in range(10))
        kill_the_busy(workers)
        seen += b"".join(read)
        completion_id = json.loads(seen.partition(b"data: ")[2].partition(b"\n")[0])["id"]
        assert get(http, completion_id)["choices"] == whole["choices"]
        assert scrape(http).total("chatfleet:streams_resumed_total") == 1


def kill_the_busy(workers: list[WorkerProcess]) -> None:
    def find() -> list[WorkerProcess]:
        found = []
        for worker in workers:
            with worker.http() as http:
                running = re.search(r"^vllm:num_requests_running\{.*\} (.*)$", http.get("/metrics").text, re.M)
                if running is not None and float(running[1]) > 0:
                    found.append(worker)
        return found

    busy = until(find, "a worker that is busy")[0]
    os.kill(busy.pid, signal.SIGKILL)
    busy.stop()


def test_a_gateway_can_be_told_to_keep_none(fleet: Fleet) -> None:
    with fleet.gateway("--no-store") as gateway, gateway.http() as http:
        error = failed(http.post(CHAT, json=body()), 400, param="store", code="unsupported_parameter")
        assert "--no-store" in error["message"]
        assert http.post(CHAT, json=body(store=False)).status_code == 200
        failed(http.get(CHAT), 405)
        failed(http.get(f"{CHAT}/x"), 404, code="unknown_url")


def test_a_corrupt_file_is_said_at_the_start_and_answers_go_out(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "corrupt.db"
    path.write_bytes(b"this is no database" * 1000)
    with fleet.gateway("--store-path", str(path)) as gateway, gateway.http() as http:
        assert gateway.output.count(f"completions cannot be stored (answers go out all the same): {path}: ") == 1
        for stream in (False, True, False):
            assert http.post(CHAT, json=body(stream=stream, messages=user("a secret"))).status_code == 200
        for answer in (http.get(CHAT), http.get(f"{CHAT}/x"), http.delete(f"{CHAT}/x")):
            failed(answer, 503, code="store_unavailable")
        assert scrape(http).total("chatfleet:completions_not_stored_total", model_name="simulated") == 3
        assert gateway.output.count("cannot be stored") == 1 and "a secret" not in gateway.output
        path.unlink()
        assert get(http, post(http)["id"])


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the limit of another process cannot be set here")
def test_a_full_disk_costs_no_answer(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "full.db"
    with fleet.gateway("--store-path", str(path)) as gateway, gateway.http() as http:
        first = post(http)["id"]
        assert get(http, first)
        room = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        for stream in (False, True):
            assert http.post(CHAT, json=body(stream=stream)).status_code == 200
        until(lambda: scrape(http).total("chatfleet:completions_not_stored_total") == 2, "both to fail")
        assert gateway.output.count("completions cannot be stored") == 1
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, room)
        last = post(http)["id"]
        assert [one["id"] for one in listed(http)] == [first, last]
