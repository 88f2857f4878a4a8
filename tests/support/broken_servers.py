"""Ways in which a server may break a rule, each for the check that must notice."""

import json
from collections.abc import Callable
from typing import Any

from support.altering import Alteration, Exchange

Edit = Callable[[Any], object]


def whole(edit: Edit) -> Alteration:
    """Edit every whole answer of a POST."""
    return lambda exchange: exchange.change(edit) if exchange.method == "POST" else None


def choice(edit: Edit) -> Alteration:
    """Edit every choice of every whole answer."""
    return whole(lambda answer: [edit(each) for each in answer.get("choices", ())])


def message(edit: Edit) -> Alteration:
    return choice(lambda each: edit(each["message"]) if "message" in each else None)


def chunks(edit: Edit) -> Alteration:
    return lambda exchange: exchange.change_chunks(edit)


def listed(edit: Edit) -> Alteration:
    """Edit what a GET answers."""
    return lambda exchange: exchange.change(edit) if exchange.method == "GET" else None


def asked(field: str, alteration: Alteration) -> Alteration:
    """Alter answers to requests that have the field."""
    return lambda exchange: alteration(exchange) if field in exchange.asked else None


def error(edit: Edit) -> Alteration:
    """Edit the body of every error."""

    def alter(exchange: Exchange) -> None:
        if exchange.status >= 400:
            value = json.loads(exchange.body)
            edit(value)
            exchange.body = json.dumps(value).encode()

    return alter


def answered(status: int, body: bytes = b'{"object": "strange"}') -> Alteration:
    def alter(exchange: Exchange) -> None:
        exchange.status, exchange.body, exchange.content_type = status, body, "application/json"

    return alter


def put(name: str, value: Any) -> Edit:
    return lambda each: each.__setitem__(name, value)


def drop(name: str) -> Edit:
    return lambda each: each.pop(name, None)


def usage(**counts: int) -> Alteration:
    return whole(lambda answer: answer.get("usage", {}).update(counts))


def in_turn(*values: Any) -> Callable[[], Any]:
    """The values one after the other, and again."""
    calls = iter(range(10**9))
    return lambda: values[next(calls) % len(values)]


def _refusal_as_event(exchange: Exchange) -> None:
    if exchange.status == 400 and exchange.asked.get("stream"):
        exchange.status, exchange.content_type = 200, "text/event-stream"
        exchange.body = b"data: " + exchange.body + b"\n\n"


def _raw(find: bytes, replacement: bytes) -> Alteration:
    def alter(exchange: Exchange) -> None:
        if exchange.is_stream:
            exchange.body = exchange.body.replace(find, replacement)

    return alter


def _content_type(value: str) -> Alteration:
    def alter(exchange: Exchange) -> None:
        exchange.content_type = value

    return alter


def _forget_the_key(exchange: Exchange) -> None:
    if exchange.path.startswith("/v1/chat/completions/") and exchange.method == "GET":
        exchange.change(put("metadata", {"purpose": "lost"}))


def _undead(exchange: Exchange) -> None:
    if exchange.status == 404 and exchange.path.startswith("/v1/chat/completions/"):
        answered(200, b"{}")(exchange)


def _text(value: str) -> Edit:
    return lambda each: each["message"].__setitem__("content", value) if "message" in each else each.update(text=value)


def _shorter(each: Any) -> None:
    """The first character is all that is left."""
    _text((each["message"]["content"] if "message" in each else each["text"])[:1])(each)


def _past_the_stop(exchange: Exchange) -> None:
    """The stop string, and more, is left in the text."""
    stop = exchange.asked.get("stop")
    if stop is not None:
        rest = f"{stop if isinstance(stop, str) else stop[-1]} and so on"
        exchange.change(lambda answer: _longer(answer["choices"][0], rest))
        exchange.change_chunks(lambda parts: parts[1]["choices"][0]["delta"].update(content=rest))


def _longer(each: Any, rest: str) -> None:
    _text((each["message"]["content"] if "message" in each else each["text"]) + rest)(each)


def _unread_call(each: Any) -> None:
    _text('<tool_call>\n{"name": "get_weather"}')(each)
    each["message"].pop("tool_calls", None)
    each["finish_reason"] = "stop"


def _arguments(value: str) -> Alteration:
    def edit(each: Any) -> None:
        for call in each.get("tool_calls") or ():
            call["function"]["arguments"] = value

    return message(edit)


def _no_calls(each: Any) -> None:
    each.pop("tool_calls", None)
    each["content"] = "I will not."


def _call_names(value: str) -> Alteration:
    def edit(each: Any) -> None:
        for call in each.get("tool_calls") or ():
            call["function"]["name"] = value

    return message(edit)


def _two_calls(each: Any) -> None:
    calls = each.get("tool_calls") or []
    each["tool_calls"] = [*calls, *({**call, "id": f"{call['id']}x"} for call in calls)]


def _same_ids(each: Any) -> None:
    for call in each.get("tool_calls") or ():
        call["id"] = "call_1"


def _always_a_call(each: Any) -> None:
    each["tool_calls"] = [{"id": "call_9", "type": "function", "function": {"name": "get_news", "arguments": "{}"}}]


def _no_piece_ids(parts: list[Any]) -> None:
    for delta in (each["delta"] for part in parts for each in part["choices"]):
        for piece in delta.get("tool_calls") or ():
            piece.pop("id", None)


def _streamed_text(value: str) -> Alteration:
    """The content of a stream, all in its first piece."""

    def edit(parts: list[Any]) -> None:
        left = value
        for delta in (each["delta"] for part in parts for each in part["choices"]):
            if delta.get("content"):
                delta["content"], left = left, ""

    return chunks(edit)


def _delta(edit: Edit) -> Alteration:
    return chunks(lambda parts: [edit(each["delta"]) for part in parts for each in part["choices"]])


def _logprob(edit: Edit) -> Alteration:
    return choice(lambda each: [edit(entry) for entry in (each.get("logprobs") or {}).get("content") or ()])


def _completion_logprobs(edit: Edit) -> Alteration:
    return choice(lambda each: edit(each["logprobs"]) if each.get("logprobs") else None)


def _fruit(text: str) -> Alteration:
    return asked("response_format", choice(_text(text)))


def _leave_then_fail() -> Alteration:
    left: list[bool] = []

    def alter(exchange: Exchange) -> None:
        if exchange.asked.get("stream"):
            left.append(True)
        elif left:
            answered(500, b'{"error": {"message": "gone"}}')(exchange)

    return alter


def _lose_streams() -> Alteration:
    """What was streamed cannot be had again."""
    streamed: list[bool] = []

    def alter(exchange: Exchange) -> None:
        if exchange.asked.get("stream"):
            streamed.append(True)
        elif exchange.method == "GET" and streamed:
            answered(404, b'{"error": {"message": "gone"}}')(exchange)

    return alter


def _distinct(make: Callable[[], Any]) -> Alteration:
    return choice(lambda each: _text(f"some text {make()}")(each))


_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_THINKING = "<think>two and two</think>4"

BROKEN: list[tuple[str, str, Alteration]] = [
    ("models.list", "it lists others", listed(lambda page: page.update(data=page["data"][1:]))),
    ("models.list", "it is no list", listed(put("object", "page"))),
    ("models.retrieve", "it is another one", listed(put("id", "other"))),
    ("models.unknown", "an unknown one is there", lambda e: answered(200)(e) if e.status == 404 else None),
    ("chat.whole", "no object", whole(drop("object"))),
    ("chat.whole", "a wrong finish_reason", choice(put("finish_reason", "eos"))),
    ("chat.whole", "a wrong sum", usage(total_tokens=1)),
    ("chat.whole", "the content type of text", _content_type("text/plain")),
    ("chat.schema", "no refusal", message(drop("refusal"))),
    ("chat.roles", "a server error", answered(500, b'{"error": {"message": "no"}}')),
    ("chat.developer", "a server error", answered(500, b'{"error": {"message": "no"}}')),
    ("chat.parts", "a refusal without a word", answered(400, b"{}")),
    ("chat.max_tokens", "too many tokens", usage(completion_tokens=9, prompt_tokens=1, total_tokens=10)),
    ("chat.max_tokens", "a wrong finish_reason", choice(put("finish_reason", "tool_calls"))),
    ("chat.max_completion_tokens", "too many", usage(completion_tokens=9, prompt_tokens=1, total_tokens=10)),
    ("chat.usage", "it counts no prompt", usage(prompt_tokens=5, completion_tokens=5, total_tokens=10)),
    ("chat.fingerprint", "another one each time", whole(lambda a: a.update(system_fingerprint=f"fp{a['id']}"))),
    ("chat.ids", "one id", whole(put("id", "chatcmpl-1"))),
    ("chat.n", "one choice", whole(lambda answer: answer.update(choices=answer["choices"][:1]))),
    ("chat.n", "one index", choice(put("index", 0))),
    ("chat.bookkeeping", "a server error", answered(500, b'{"error": {"message": "no"}}')),
    ("sampling.stop", "it does not stop", _past_the_stop),
    ("sampling.stop", "it stops too soon", asked("stop", choice(_shorter))),
    ("sampling.stop", "a finish_reason of length", asked("stop", choice(put("finish_reason", "length")))),
    ("sampling.seed", "it is ignored", _distinct(in_turn(*range(7)))),
    ("sampling.temperature", "it is ignored", _distinct(in_turn(*range(7)))),
    (
        "sampling.top_p",
        "it is ignored",
        lambda e: e.change(lambda a: _text(f"at {e.asked.get('temperature')}")(a["choices"][0])),
    ),
    ("sampling.logit_bias", "it is ignored", choice(_text("some other text, of seven words"))),
    ("sampling.logprobs", "null", choice(put("logprobs", None))),
    ("sampling.logprobs", "bytes of others", _logprob(put("bytes", [33]))),
    ("sampling.logprobs", "over 0", _logprob(put("logprob", 0.5))),
    ("sampling.top_logprobs", "in another order", _logprob(lambda entry: entry["top_logprobs"].reverse())),
    ("sampling.top_logprobs", "too few", _logprob(lambda entry: entry["top_logprobs"].pop())),
    ("sampling.no_logprobs", "they are there", choice(put("logprobs", {"content": [], "refusal": None}))),
    ("stream.form", "no [DONE]", _raw(b"data: [DONE]\n\n", b"")),
    ("stream.form", "no role", _delta(drop("role"))),
    ("stream.form", "two ends", chunks(lambda parts: parts.append(parts[-1]))),
    ("stream.form", "a wrong content type", _content_type("application/json")),
    ("stream.form", "events without an end", _raw(b"\n\n", b"\n")),
    ("stream.form", "ids that change", chunks(lambda parts: parts[0].update(id="chatcmpl-other"))),
    ("stream.same", "a piece is lost", chunks(lambda parts: parts.pop(2))),
    ("stream.usage", "none", chunks(lambda parts: parts.pop())),
    ("stream.usage", "with choices", chunks(lambda parts: parts[-1].update(choices=parts[0]["choices"]))),
    ("stream.no_usage", "unasked", chunks(lambda p: p[-1].update(usage=dict.fromkeys(_COUNTS, 0)))),
    ("stream.n", "one choice", chunks(lambda parts: [put("index", 0)(c) for part in parts for c in part["choices"]])),
    ("stream.logprobs", "none", chunks(lambda p: [put("logprobs", None)(c) for part in p for c in part["choices"]])),
    ("stream.stop", "it does not stop", _past_the_stop),
    ("stream.stop", "it stops too soon", asked("stop", _streamed_text("G"))),
    ("stream.unicode", "half characters", _delta(lambda each: each.update(content="\ud83d"))),
    ("stream.unicode", "U+FFFD", _streamed_text("Gr\ufffd\ufffd")),
    ("stream.disconnect", "it fails from then on", _leave_then_fail()),
    ("stream.early_errors", "they are events", _refusal_as_event),
    ("errors.form", "no code", error(lambda body: body["error"].pop("code"))),
    ("errors.form", "422", lambda e: answered(422, e.body)(e) if e.status == 400 else None),
    ("errors.unknown_model", "400", lambda e: answered(400, e.body)(e) if e.status == 404 else None),
    ("errors.bad_json", "500", lambda e: answered(500, e.body)(e) if e.status == 400 else None),
    ("errors.no_messages", "no param", error(lambda body: body["error"].update(param=None))),
    ("errors.empty_messages", "taken", answered(200)),
    ("errors.wrong_types", "422", lambda e: answered(422, e.body)(e) if e.status == 400 else None),
    ("errors.wrong_types", "another form", error(lambda body: body.update(error="wrong"))),
    ("errors.temperature", "taken", answered(200)),
    ("errors.temperature", "no param", error(lambda body: body["error"].update(param=None))),
    ("errors.top_p", "taken", answered(200)),
    ("errors.penalties", "taken", answered(200)),
    ("errors.max_tokens", "taken", answered(200)),
    ("errors.n", "taken", answered(200)),
    ("errors.stop", "taken", answered(200)),
    ("errors.logit_bias", "taken", answered(200)),
    ("errors.top_logprobs", "taken", answered(200)),
    ("errors.context_length", "no code", error(lambda body: body["error"].update(code=None))),
    (
        "errors.context_length",
        "cut without a word",
        lambda e: answered(200, b'{"usage": {"prompt_tokens": 9}}')(e) if e.status == 400 else None,
    ),
    ("errors.unknown_path", "200", answered(200)),
    ("tools.auto", "a call in the text", choice(_unread_call)),
    (
        "tools.auto",
        "a finish_reason of calls",
        choice(lambda each: (_no_calls(each["message"]), each.update(finish_reason="tool_calls"))),
    ),
    ("tools.required", "no call", message(_no_calls)),
    ("tools.required", "another tool", _call_names("get_lost")),
    ("tools.required", "arguments that are none", _arguments("Paris")),
    ("tools.required", "a wrong finish_reason", choice(put("finish_reason", "stop"))),
    ("tools.named", "another one", _call_names("get_weather")),
    ("tools.none", "a call", message(_always_a_call)),
    ("tools.allowed", "another one", _call_names("get_weather")),
    ("tools.one", "two", message(_two_calls)),
    ("tools.strict", "wrong arguments", _arguments('{"city": "Ur", "days": 1}')),
    ("tools.strict", "too few arguments", _arguments('{"city": "Paris"}')),
    ("tools.stream", "no ids", chunks(_no_piece_ids)),
    ("tools.stream", "no calls", _delta(drop("tool_calls"))),
    ("tools.n", "one id", message(_same_ids)),
    ("tools.results", "a server error", answered(500, b'{"error": {"message": "no"}}')),
    ("tools.round_trip", "no call", message(_no_calls)),
    ("tools.functions", "tool_calls in their place", message(drop("function_call"))),
    ("tools.unknown_choice", "taken", lambda e: answered(200)(e) if e.status == 400 else None),
    ("tools.no_tools", "taken", lambda e: answered(200)(e) if e.status == 400 else None),
    ("structure.text", "a server error", answered(500, b'{"error": {"message": "no"}}')),
    ("structure.json_object", "text", choice(_text("Here it is: {}"))),
    ("structure.json_schema", "text", _fruit("A red one.")),
    ("structure.json_schema", "a wrong value", _fruit('{"colour": "pink", "count": 1, "ripe": true}')),
    ("structure.json_schema", "one property more", _fruit('{"colour": "red", "count": 1, "ripe": true, "x": 1}')),
    ("structure.json_schema", "cut off", choice(put("finish_reason", "length"))),
    ("structure.stream", "text", _streamed_text("A red one.")),
    ("structure.n", "a wrong value", _fruit('{"colour": "red", "count": 7, "ripe": true}')),
    ("structure.unicode", "escaped bytes", _fruit('{"greeting": "Gr\ufffd"}')),
    ("structure.refs", "a wrong value", _fruit('{"kind": "fruit", "tags": [], "size": null}')),
    ("structure.recursion", "a wrong value", _fruit('{"list": {"value": 9, "next": null}}')),
    ("structure.bad_schema", "taken", lambda e: answered(200)(e) if e.status == 400 else None),
    ("structure.no_schema", "taken", lambda e: answered(200)(e) if e.status == 400 else None),
    ("reasoning.content", "left in the content", choice(_text(_THINKING))),
    ("reasoning.content", "two of them", message(lambda m: m.update(reasoning="a", reasoning_content="b"))),
    ("reasoning.stream", "left in the content", _streamed_text(_THINKING)),
    ("reasoning.stream", "behind the answer", _delta(lambda d: d.update(reasoning_content="hm", content="4"))),
    (
        "reasoning.usage",
        "more than there are tokens",
        whole(
            lambda a: (
                a["choices"][0]["message"].update(reasoning_content="hm"),
                a["usage"].update(completion_tokens_details={"reasoning_tokens": 9999}),
            )
        ),
    ),
    ("reasoning.effort", "a server error", answered(500, b'{"error": {"message": "no"}}')),
    ("completions.whole", "the object of chat", whole(put("object", "chat.completion"))),
    ("completions.stream", "a piece is lost", chunks(lambda parts: parts.pop(1))),
    ("completions.usage", "none", chunks(lambda parts: parts.pop())),
    ("completions.prompts", "one choice", whole(lambda answer: answer.update(choices=answer["choices"][:1]))),
    ("completions.n", "one choice", whole(lambda answer: answer.update(choices=answer["choices"][:1]))),
    ("completions.token_ids", "read as text", usage(prompt_tokens=99, completion_tokens=1, total_tokens=100)),
    ("completions.stop", "it does not stop", _past_the_stop),
    ("completions.stop", "it stops too soon", asked("stop", choice(_shorter))),
    ("completions.max_tokens", "too many", usage(completion_tokens=9, prompt_tokens=1, total_tokens=10)),
    ("completions.echo", "no echo", asked("echo", choice(_text("and so on")))),
    ("completions.logprobs", "null", choice(put("logprobs", None))),
    ("completions.logprobs", "wrong places", _completion_logprobs(lambda found: found["text_offset"].reverse())),
    ("completions.top_logprobs", "none", _completion_logprobs(lambda found: found.update(top_logprobs=None))),
    (
        "completions.echo_logprobs",
        "not of the prompt",
        _completion_logprobs(lambda found: [each.pop(0) for each in found.values()]),
    ),
    ("completions.best_of", "all of them", whole(lambda a: a["choices"].append(a["choices"][0]))),
    ("completions.best_of", "it is ignored", usage(prompt_tokens=4, completion_tokens=8, total_tokens=12)),
    ("completions.best_of_errors", "taken", lambda e: answered(200)(e) if e.status == 400 else None),
    ("completions.logit_bias", "it is ignored", choice(_text("some other text"))),
    ("completions.no_prompt", "taken", lambda e: answered(200)(e) if e.status == 400 else None),
    ("embeddings.float", "zeros", whole(lambda a: a["data"][0].update(embedding=[0.0, 0.0]))),
    (
        "embeddings.base64",
        "floats",
        whole(lambda a: a["data"][0].update(embedding=[1.0, 2.0])),
    ),
    ("embeddings.several", "another order", whole(lambda a: a["data"].reverse())),
    ("embeddings.dimensions", "all of them", whole(lambda a: a["data"][0]["embedding"].append(0.5))),
    ("embeddings.errors", "taken", lambda e: answered(200)(e) if e.status == 400 else None),
    ("store.retrieve", "its metadata is lost", _forget_the_key),
    ("store.retrieve", "another text", listed(lambda a: _text("other")(a["choices"][0]) if "choices" in a else None)),
    ("store.list", "too many", listed(lambda a: a["data"].append(dict(a["data"][0])) if a.get("data") else None)),
    ("store.messages", "without ids", listed(lambda a: [m.pop("id") for m in a.get("data", ())])),
    ("store.update", "nothing changes", _forget_the_key),
    ("store.delete", "it is still there", _undead),
    ("store.stream", "a stream is not", _lose_streams()),
    ("store.not_kept", "it is", _undead),
    ("extensions.tokenize", "bytes are lost", whole(lambda a: a.update(prompt="Gru") if "prompt" in a else None)),
    (
        "extensions.top_k",
        "it is ignored",
        lambda e: e.change(lambda a: _text(f"at {e.asked.get('temperature')}")(a["choices"][0])),
    ),
    (
        "extensions.min_p",
        "it is ignored",
        lambda e: e.change(lambda a: _text(f"at {e.asked.get('temperature')}")(a["choices"][0])),
    ),
    ("extensions.ignore_eos", "it is ignored", choice(put("finish_reason", "stop"))),
    ("extensions.min_tokens", "it is ignored", choice(put("finish_reason", "stop"))),
    ("extensions.stop_token_ids", "it is ignored", asked("stop_token_ids", choice(put("finish_reason", "length")))),
    ("extensions.return_token_ids", "none", choice(drop("token_ids"))),
    ("extensions.return_token_ids", "too few", choice(lambda each: each["token_ids"].pop())),
    ("extensions.prompt_logprobs", "none", whole(drop("prompt_logprobs"))),
    (
        "extensions.continue",
        "a new turn",
        asked("continue_final_message", usage(prompt_tokens=90, completion_tokens=10, total_tokens=100)),
    ),
    (
        "extensions.template",
        "a server error",
        asked("chat_template_kwargs", lambda e: answered(500)(e) if e.status == 200 else None),
    ),
    ("extensions.structured_choice", "another one", choice(_text("maybe"))),
    ("extensions.structured_regex", "no match", choice(_text("ab-12"))),
    ("extensions.structured_json", "text", choice(_text("good"))),
    ("extensions.structured_grammar", "another word", choice(_text("blue"))),
    ("extensions.structured_errors", "500", lambda e: answered(500, e.body)(e) if e.status == 400 else None),
]
"""A check, how the rule is broken, and the alteration of a good server's answers that does it."""
