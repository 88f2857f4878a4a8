"""Workers that are killed in the middle of answers, and clients that do not notice."""

import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from support.fleet import statuses, until
from support.processes import ControllerProcess, GatewayProcess, WorkerProcess
from support.suites import quick
from support.wire import Json, RawConnection, events, user

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SIMULATED = ("--engine", "simulated", "--model-name", "m", "--sim-itl-ms", "10")


@dataclass
class Fleet:
    """A gateway before workers of one model, which may be killed and replaced."""

    controller: ControllerProcess
    gateway: GatewayProcess
    stack: ExitStack
    workers: list[WorkerProcess]

    def start_worker(self) -> None:
        arguments = ("--controller-url", self.controller.url, *SIMULATED)
        self.workers.append(self.stack.enter_context(WorkerProcess(*arguments)))

    def until_whole(self) -> None:
        """Wait until there are two workers, and the gateway knows."""
        while sum(worker.alive() for worker in self.workers) < 2:
            self.start_worker()
        urls = {worker.url for worker in self.workers if worker.alive()}
        with self.controller.http() as http:
            until(lambda: urls <= {status["url"] for status in statuses(http).values()}, "two workers")

    def busy(self) -> WorkerProcess:
        """The worker that generates something."""

        def find() -> list[WorkerProcess]:
            found = []
            for worker in self.workers:
                if worker.alive():
                    with worker.http() as http:
                        running = re.search(r"^vllm:num_requests_running\{.*\} (.*)$", http.get("/metrics").text, re.M)
                        if running is not None and float(running[1]) > 0:
                            found.append(worker)
            return found

        return until(find, "a worker that is busy")[0]


@pytest.fixture(scope="module")
def module_fleet() -> Iterator[Fleet]:
    with ExitStack() as stack:
        controller = stack.enter_context(ControllerProcess())
        fleet = Fleet(controller, None, stack, [])  # type: ignore[arg-type]
        fleet.start_worker()
        fleet.start_worker()
        fleet.gateway = stack.enter_context(GatewayProcess(controllers=[controller], models=["m"]))
        yield fleet


@pytest.fixture
def fleet(module_fleet: Fleet) -> Fleet:
    module_fleet.until_whole()
    return module_fleet


def kill(worker: WorkerProcess) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    worker.stop()


def plain(stream: list[str]) -> list[Any]:
    """The events of a stream without what tells one answer from another; fails if it has more than one id."""
    *data, done = stream
    assert done == "[DONE]"
    parts: list[Json] = [json.loads(item) for item in data]
    assert len({(part.pop("id"), part.pop("created")) for part in parts}) == 1
    return parts


REQUESTS: dict[str, tuple[str, Json]] = {
    "chat": (CHAT, {"messages": user("tell me")}),
    "choices": (CHAT, {"messages": user("tell us"), "n": 3, "seed": 1}),
    "logprobs": (CHAT, {"messages": user("tell me why"), "logprobs": True, "top_logprobs": 2}),
    "penalties": (CHAT, {"messages": user("tell"), "presence_penalty": 0.4, "frequency_penalty": 0.3, "seed": 7}),
    "completion": (COMPLETIONS, {"prompt": "Once", "echo": True}),
    "prompts": (COMPLETIONS, {"prompt": ["Once", "Twice"], "n": 2, "logprobs": 1}),
}


@pytest.mark.parametrize("name", quick(2, REQUESTS))
def test_the_client_of_a_killed_worker_gets_every_event(fleet: Fleet, name: str) -> None:
    path, fields = REQUESTS[name]
    more = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 120, "ignore_eos": True}
    body = {"model": "m", **more, **fields}
    with fleet.gateway.http() as http, RawConnection(fleet.gateway.url) as connection:
        undisturbed = events(http.post(path, json=body).content)
        connection.post(path, body)
        connection.read_head()
        busy = fleet.busy()  # asked early: on a loaded machine the worker may be far ahead of what has been read
        chunks = connection.read_chunks()
        seen = b"".join(next(chunks) for _ in range(20))
        kill(busy)
        seen += b"".join(chunks)
    stream = plain(events(seen))
    expected = plain(undisturbed)
    assert by_choice(stream) == by_choice(expected)
    assert counted(stream[-1]) == counted(expected[-1])


def counted(part: Json) -> Json:
    """The usage; how much of a prompt a worker has in its cache is its own affair."""
    return {name: value for name, value in part["usage"].items() if name != "prompt_tokens_details"}


def by_choice(parts: list[Any]) -> dict[int, dict[str, Any]]:
    """All of each choice, however it was cut into chunks: a worker that is busy gives several tokens in one."""
    found: dict[int, dict[str, Any]] = {}
    for choice in (choice for part in parts for choice in part["choices"]):
        whole = found.setdefault(choice["index"], {"text": "", "roles": [], "logprobs": {}, "finish_reasons": []})
        delta = choice.get("delta", {})
        whole["text"] += choice.get("text") or delta.get("content") or ""
        whole["roles"] += [delta["role"]] if "role" in delta else []
        whole["finish_reasons"] += [choice["finish_reason"]] if choice["finish_reason"] else []
        for name, values in (choice["logprobs"] or {}).items():
            whole["logprobs"].setdefault(name, []).extend(values or [])
    return found


def test_a_whole_answer_of_a_killed_worker_is_made_again(fleet: Fleet) -> None:
    body = {"model": "m", "messages": user("all of it"), "max_tokens": 100, "ignore_eos": True}
    with fleet.gateway.http() as http, ThreadPoolExecutor(1) as pool:
        undisturbed = http.post(CHAT, json=body).json()
        answer = pool.submit(http.post, CHAT, json=body)
        kill(fleet.busy())
        response = answer.result()
        assert response.status_code == 200, response.text
        assert response.json()["choices"] == undisturbed["choices"]
        assert counted(response.json()) == counted(undisturbed)


def test_the_sdk_does_not_notice(fleet: Fleet) -> None:
    client = openai.OpenAI(base_url=f"{fleet.gateway.url}/v1", api_key="none", max_retries=0)
    ask: Any = {
        "model": "m",
        "messages": user("a story"),
        "max_tokens": 100,
        "stop": ["zzz"],
        "extra_body": {"ignore_eos": True},
    }
    whole = client.chat.completions.create(**ask).choices[0].message.content
    text = ""
    for number, part in enumerate(client.chat.completions.create(**ask, stream=True)):
        if number == 20:
            kill(fleet.busy())
        text += part.choices[0].delta.content or ""
    assert text == whole


@pytest.mark.long
def test_a_worker_that_is_stopped_is_left_and_its_stream_goes_on() -> None:
    with ExitStack() as stack:
        controller = stack.enter_context(ControllerProcess())
        arguments = ("--controller-url", controller.url, *SIMULATED)
        workers = [stack.enter_context(WorkerProcess(*arguments)) for _ in range(2)]
        gateway = stack.enter_context(GatewayProcess("--stall-timeout", "0.5", controllers=[controller], models=["m"]))
        fleet = Fleet(controller, gateway, stack, workers)
        fleet.until_whole()
        body = {"model": "m", "messages": user("slow"), "max_tokens": 200, "ignore_eos": True, "stream": True}
        with gateway.http() as http, RawConnection(gateway.url) as connection:
            undisturbed = plain(events(http.post(CHAT, json=body).content))
            connection.post(CHAT, body)
            connection.read_head()
            chunks = connection.read_chunks()
            seen = next(chunks)
            stopped = fleet.busy()
            os.kill(stopped.pid, signal.SIGSTOP)
            try:
                seen += b"".join(chunks)
            finally:
                os.kill(stopped.pid, signal.SIGCONT)
        assert by_choice(plain(events(seen))) == by_choice(undisturbed)
