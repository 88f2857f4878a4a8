"""`chatfleet chat` at a terminal."""

import signal

import httpx
import pytest

from support.processes import Endpoint, WorkerProcess
from support.terminal import Terminal
from support.wire import Json

PROMPT = "> "


def answer_to(http: httpx.Client, *messages: str, system: str | None = None) -> str:
    """What the endpoint answers in a conversation of user and assistant, in turn."""
    given: list[Json] = [{"role": "system", "content": system}] if system else []
    given += [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(messages)]
    answer = http.post("/v1/chat/completions", json={"messages": given})
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_conversation_goes_on_starts_over_and_ends(http: httpx.Client, simulated_endpoint: Endpoint) -> None:
    first = answer_to(http, "hello")
    second = answer_to(http, "hello", first, "and then?")
    assert second != answer_to(http, "and then?")
    with Terminal("chat", "--base-url", f"{simulated_endpoint.url}/v1") as terminal:
        assert "simulated" in terminal.until(PROMPT)
        terminal.enter("hello\n")
        terminal.until(first)
        terminal.until(PROMPT)
        terminal.enter("and then?\n")
        terminal.until(second)
        terminal.until(PROMPT)
        terminal.enter("/reset\n")
        terminal.until(PROMPT)
        terminal.enter("\n")
        terminal.until(PROMPT)
        terminal.enter("hello\n")
        terminal.until(first)
        terminal.until(PROMPT)
        terminal.enter("/exit\n")
        assert terminal.end() == 0


def test_ctrl_d_ends_it(simulated_endpoint: Endpoint) -> None:
    with Terminal("chat", "--base-url", f"{simulated_endpoint.url}/v1") as terminal:
        terminal.until(PROMPT)
        terminal.enter("\x04")
        assert terminal.end() == 0
    assert "Traceback" not in terminal.screen


def test_a_system_message_stays_over_a_reset(http: httpx.Client, simulated_endpoint: Endpoint) -> None:
    answer = answer_to(http, "hello", system="Be brief.")
    assert answer != answer_to(http, "hello")
    with Terminal("chat", "--base-url", f"{simulated_endpoint.url}/v1", "--system", "Be brief.") as terminal:
        for _ in range(2):
            terminal.until(PROMPT)
            terminal.enter("hello\n")
            terminal.until(answer)
            terminal.until(PROMPT)
            terminal.enter("/reset\n")


def test_an_answer_shows_while_it_is_made_and_ctrl_c_stops_it(http: httpx.Client) -> None:
    first = answer_to(http, "hello")
    with (
        WorkerProcess("--engine", "simulated", "--sim-itl-ms", "500") as worker,
        Terminal("chat", "--base-url", f"{worker.url}/v1") as terminal,
    ):
        terminal.until(PROMPT)
        terminal.enter("hello\n")
        terminal.until(first[:3])
        terminal._process.send_signal(signal.SIGINT)
        assert first not in terminal.until("(stopped)")
        terminal.until(PROMPT)
        terminal.enter("/exit\n")
        assert terminal.end() == 0


def test_an_endpoint_that_is_down_is_one_clear_message() -> None:
    with Terminal("chat", "--base-url", "http://127.0.0.1:9/v1") as terminal:
        assert terminal.end() == 1
    assert "http://127.0.0.1:9/v1 does not answer" in terminal.screen
    assert "Traceback" not in terminal.screen and len(terminal.screen.splitlines()) <= 3


@pytest.mark.long
def test_an_endpoint_that_goes_down_in_the_middle_is_an_error_and_the_chat_goes_on() -> None:
    with (
        WorkerProcess("--engine", "simulated", "--sim-itl-ms", "500") as worker,
        Terminal("chat", "--base-url", f"{worker.url}/v1") as terminal,
    ):
        terminal.until(PROMPT)
        terminal.enter("hello\n")
        terminal.until(" ")
        worker.stop(signal.SIGKILL)
        terminal.until("Error:")
        terminal.until(PROMPT)
        terminal.enter("again\n")
        terminal.until("Error:")
        terminal.until(PROMPT)
        terminal.enter("/exit\n")
        assert terminal.end() == 0
    assert "Traceback" not in terminal.screen


@pytest.mark.long
def test_a_request_that_is_refused_is_left_out_of_the_conversation(http: httpx.Client) -> None:
    with (
        WorkerProcess("--engine", "simulated", "--context-length", "400") as worker,
        Terminal("chat", "--base-url", f"{worker.url}/v1") as terminal,
    ):
        terminal.until(PROMPT)
        terminal.enter("x" * 500 + "\n")
        assert "maximum context length is 400" in terminal.until(PROMPT)
        terminal.enter("hello\n")
        terminal.until(answer_to(http, "hello"))
