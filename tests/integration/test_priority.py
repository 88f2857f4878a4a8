"""Whose requests come first at a worker that is full: configuration says so, and clients cannot."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatfleet.core.errors import ConfigurationError
from chatfleet.gateway.settings import EndpointSettings
from support.fleet import until
from support.processes import ControllerProcess, GatewayProcess, WorkerProcess
from support.wire import Json, RawConnection, user

CHAT = "/v1/chat/completions"


def keys_file(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    return path


def test_a_line_of_the_keys_file_may_name_a_priority(tmp_path: Path) -> None:
    path = keys_file(tmp_path, "# who\nplain\nurgent priority=-3\nlater   priority=20\n")
    assert EndpointSettings(api_keys_file=path).keys() == {"plain": 0, "urgent": -3, "later": 20}


@pytest.mark.parametrize("line", ["key priority=high", "key priority=", "key 3", "key priority=1 priority=2", "a b c"])
def test_a_line_that_is_not_understood_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigurationError, match="priority=N"):
        EndpointSettings(api_keys_file=keys_file(tmp_path, line)).keys()


def test_a_key_with_priority_is_served_before_those_that_wait(tmp_path: Path) -> None:
    keys = keys_file(tmp_path, "urgent priority=-1\nplain\n")
    one_at_a_time = ("--engine", "simulated", "--model-name", "m", "--max-concurrency", "1", "--sim-itl-ms", "10")
    options = ("--api-keys-file", str(keys))
    order: list[str] = []
    with (
        ControllerProcess() as controller,
        WorkerProcess(*one_at_a_time, "--controller-url", controller.url) as worker,
        GatewayProcess(*options, controllers=[controller], models=["m"], api_key="plain") as gateway,
        ThreadPoolExecutor(5) as pool,
        worker.http() as at_worker,
    ):

        def body(name: str, **more: Any) -> Json:
            return {"model": "m", "messages": user(name), "ignore_eos": True, **more}

        def has(state: str, count: int) -> bool:
            lines = at_worker.get("/metrics").text.splitlines()
            line = next(line for line in lines if line.startswith(f"vllm:num_requests_{state}{{"))
            return float(line.rpartition(" ")[2]) == count

        def ask(name: str, key: str, **more: Any) -> None:
            headers = {"authorization": f"Bearer {key}"}
            response = httpx.post(
                gateway.url + CHAT, json=body(name, max_tokens=20, **more), headers=headers, timeout=60
            )
            assert response.status_code == 200, response.text
            order.append(name)

        with RawConnection(gateway.url) as endless:
            endless.post(CHAT, body("endless", stream=True), "authorization: Bearer plain")
            until(lambda: has("running", 1), "the slot is taken")
            asked = [pool.submit(ask, "first", "plain")]
            until(lambda: has("waiting", 1), "the first waits")
            asked.append(pool.submit(ask, "pushy", "plain", priority=-100))
            until(lambda: has("waiting", 2), "the second waits")
            asked.append(pool.submit(ask, "urgent", "urgent"))
            until(lambda: has("waiting", 3), "the third waits")
        for one in asked:
            one.result()
    assert order == ["urgent", "first", "pushy"]
