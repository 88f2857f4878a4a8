"""Conversations with functions: calls to known and never-seen functions, and answers from their results."""
# ruff: noqa: E501, SIM905 - the tables read best in long rows

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import phrasings
import skills
import words

Message = dict[str, Any]
Tool = dict[str, Any]
Coin = Callable[[random.Random], str]
"""Makes up a word."""


@dataclass(frozen=True)
class Request:
    """What the user asks, the calls that answer it, and per call the result and how it is told."""

    prompt: str
    calls: list[tuple[str, dict[str, Any]]]
    results: list[str]
    answer: str


_KNOWN: dict[str, dict[str, list[str]]] = {
    "get_weather": {
        "descriptions": [
            "Get the current weather for a location.", "Get the weather in a city.", "Returns the current weather.",
            "Get current weather", "Weather of a place", "Get the current temperature and weather in a given location",
        ],
        "location": ["The city", "City and country", "The place to look up", "City name, e.g. Paris", "Location"],
    },
    "get_time": {
        "descriptions": [
            "Get the current time in a city.", "Returns the local time of a city.", "Get the time", "Current time",
        ],
        "city": ["The city", "Name of the city", "City name", "The city to look up"],
    },
    "add": {
        "descriptions": ["Add two numbers.", "Adds a and b.", "Returns the sum of two numbers", "Sum of two integers"],
        "a": ["The first number", "First addend", "a"],
        "b": ["The second number", "Second addend", "b"],
    },
}  # fmt: skip
_WEATHER = """what is the weather in {x};what's the weather in {x};what is the weather like in {x};how is the weather in {x};weather in {x};
is it raining in {x};is it sunny in {x};how warm is it in {x};how cold is it in {x};what is the temperature in {x};tell me the weather in {x};
what is the weather in {x} today;do I need an umbrella in {x};get the weather for {x};check the weather in {x};{x} weather;what's the weather like in {x} right now;
is it cold in {x};can you check the weather in {x};give me the weather for {x};what is the current weather in {x};how hot is it in {x};and the weather in {x}"""
_TIME = """what time is it in {x};what is the time in {x};what's the time in {x};time in {x};tell me the time in {x};what time is it now in {x};
get the time in {x};current time in {x};what is the current time in {x};how late is it in {x};what is the local time in {x};{x} time;
can you tell me the time in {x};check the time in {x};what's the local time in {x};and the time in {x};do you know what time it is in {x}"""
_VERBS = """find open send get search start stop delete create update check play show book order buy lookup list read count close cancel call
load save move copy print share watch clean paint lock unlock rent sell paste sort filter build test""".split()
_THINGS = """book song user file movie flight room email message ticket recipe order product page photo table note task event game team
device door light city country word name number report_card account city_map playlist contact article image video job story train
hotel museum server package lamp playlist city_guide bus_stop""".split()
_ARGUMENTS = "name query title text id value item label key topic user path word q input keyword target subject code email".split()
_CONDITIONS = "sunny cloudy rainy snowy windy foggy stormy clear".split()
_EXPLICIT = """call {f} with {v};use {f} with {v};run {f} on {v};please call {f} with {v};call the function {f} with {v};use {f} on {v};
call {f} for {v};use the function {f} with {v};run {f} with {v};{f} {v};execute {f} with {v};I want you to call {f} with {v};use {f} for {v};
call {f} with the {a} {v};use the tool {f} with {v};invoke {f} with {v}"""
_NATURAL = """{verb} the {thing} {v};please {verb} the {thing} {v};can you {verb} the {thing} {v};{verb} {thing} {v};I want to {verb} the {thing} {v};
could you {verb} the {thing} {v};{verb} the {thing} called {v};{verb} the {thing} named {v};{verb} a {thing} for {v};I need you to {verb} the {thing} {v};
{verb} the {thing} of {v};{verb} the {thing} with the {a} {v}"""


def _property(rng: random.Random, kind: str, description: str | None) -> dict[str, Any]:
    items: list[tuple[str, Any]] = [("type", kind)]
    if description is not None:
        items.append(("description", description))
    if rng.random() < 0.25:
        rng.shuffle(items)
    return dict(items)


def wrapped(
    rng: random.Random, name: str, description: str | None, properties: dict[str, Any], required: list[str]
) -> Tool:
    """A tool as OpenAI clients send it, its keys in one of the usual orders."""
    parameters: list[tuple[str, Any]] = [("type", "object"), ("properties", properties)]
    if rng.random() < 0.8:
        parameters.append(("required", required))
    if rng.random() < 0.12:
        parameters.append(("additionalProperties", False))
    if rng.random() < 0.2:
        rng.shuffle(parameters)
    function: list[tuple[str, Any]] = [("name", name)]
    if description is not None:
        function.append(("description", description))
    function.append(("parameters", dict(parameters)))
    if rng.random() < 0.08:
        function.append(("strict", True))
    if rng.random() < 0.25:
        rng.shuffle(function)
    outer: list[tuple[str, Any]] = [("type", "function"), ("function", dict(function))]
    if rng.random() < 0.1:
        outer.reverse()
    return dict(outer)


def known_tool(rng: random.Random, name: str) -> Tool:
    spec = _KNOWN[name]
    kind = rng.choice(("integer", "number")) if name == "add" else "string"
    described = rng.random() < 0.6
    properties = {
        argument: _property(rng, kind, rng.choice(texts) if described else None)
        for argument, texts in spec.items()
        if argument != "descriptions"
    }
    required = list(properties)
    if name == "get_weather" and rng.random() < 0.25:
        properties["unit"] = {"type": "string", "enum": ["celsius", "fahrenheit"]}
    return wrapped(rng, name, rng.choice(spec["descriptions"]) if rng.random() < 0.85 else None, properties, required)


def _value(rng: random.Random, coin: Coin) -> str:
    kind = rng.random()
    if kind < 0.3:
        return words.phrase(rng, 3, plain=True)
    if kind < 0.5:
        return words.title_name(rng)
    if kind < 0.6:
        return words.place(rng)
    if kind < 0.7:
        return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789") for _ in range(rng.randint(3, 7)))
    if kind < 0.78:
        return f"{coin(rng)}{rng.choice('-_.')}{rng.randrange(1000)}"
    return coin(rng) if kind < 0.9 else str(rng.randrange(10000))


def _result(rng: random.Random) -> tuple[str, str]:
    """What a function might return, and the value in it."""
    kind = rng.random()
    value = (
        words.phrase(rng, 3, plain=True)
        if kind < 0.5
        else str(rng.randrange(100000))
        if kind < 0.75
        else words.title_name(rng)
    )
    if rng.random() < 0.5:
        return value, value
    key = rng.choice(("result", "value", "status", "output", "answer", words.made_up(rng), rng.choice(_THINGS)))
    if rng.random() < 0.7:
        return json.dumps({key: value}), value
    return json.dumps({key: value}, separators=(",", ":")), value


def _unseen(rng: random.Random, coin: Coin) -> tuple[Tool, Request]:
    """A function of a made-up or rare name with one string argument."""
    argument = rng.choice(_ARGUMENTS) if rng.random() < 0.75 else coin(rng)
    verb, thing = rng.choice(_VERBS), rng.choice(_THINGS)
    if rng.random() < 0.5:
        verb = coin(rng) if rng.random() < 0.5 else rng.choice(words.VERBS)
    if rng.random() < 0.5:
        thing = coin(rng) if rng.random() < 0.5 else rng.choice(words.NOUNS)
    name = rng.choice((f"{verb}_{thing}",) * 8 + (f"{verb}{thing.title()}", verb, f"{verb}-{thing}"))
    value = _value(rng, coin)
    shown = rng.choice(("{}", "{}", "'{}'", '"{}"')).format(value)
    natural = thing in name and rng.random() < 0.55
    prompt = rng.choice(phrasings.ways(_NATURAL if natural else _EXPLICIT))
    for slot, text in {
        "{f}": name,
        "{v}": shown,
        "{a}": argument,
        "{verb}": verb,
        "{thing}": thing.replace("_", " "),
    }.items():
        prompt = prompt.replace(slot, text)
    if rng.random() < 0.6 and not prompt.startswith(name):
        prompt = prompt[:1].upper() + prompt[1:]
    prompt += rng.choice((".", "", "!")) if natural or shown != value else rng.choice((".", "", ""))
    descriptions = (
        f"{verb.capitalize()}s a {thing}.",
        f"{verb.capitalize()} the {thing}",
        f"Runs {name}.",
        words.phrase(rng, 5, plain=True),
    )
    description = rng.choice(descriptions) if rng.random() < 0.8 else None
    about = (
        rng.choice((f"The {argument}", f"The {argument} of the {thing}", words.phrase(rng, 4, plain=True)))
        if rng.random() < 0.5
        else None
    )
    properties = {argument: _property(rng, "string", about)}
    result, told = _result(rng)
    tool = wrapped(rng, name, description, properties, [argument])
    return tool, Request(prompt, [(name, {argument: value})], [result], f"The result is {told}.")


def _weather(rng: random.Random, place: str) -> tuple[str, str]:
    degrees, condition = rng.randrange(-15, 40), rng.choice(_CONDITIONS)
    kind = rng.random()
    if kind < 0.6:
        temperature = rng.choice(("temperature", "temperature", "temp", "degrees"))
        items: list[tuple[str, Any]] = [
            (temperature, degrees),
            (rng.choice(("condition", "condition", "weather", "sky")), condition),
        ]
        if rng.random() < 0.3:
            items.insert(0, (rng.choice(("location", "city")), place))
        if rng.random() < 0.3:
            rng.shuffle(items)
        result = json.dumps(dict(items))
    else:
        result = rng.choice(
            (
                f"{condition}, {degrees} degrees",
                f"{degrees} degrees and {condition}",
                f"{condition.capitalize()}, {degrees} C",
                f"{degrees} C, {condition}",
                f"{condition} {degrees}",
            )
        )
    return result, f"In {place} it is {condition} and {degrees} degrees."


def _time(rng: random.Random, place: str) -> tuple[str, str]:
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    items = {"city": place, "time": clock} if rng.random() < 0.3 else {"time": clock}
    return (clock if rng.random() < 0.5 else json.dumps(items)), f"In {place} it is {clock}."


def _numbers(rng: random.Random) -> tuple[int, int]:
    return skills.pair(rng) if rng.random() < 0.7 else (rng.randrange(100, 10000), rng.randrange(100, 10000))


def _sum(rng: random.Random, a: int, b: int) -> tuple[str, str]:
    return rng.choice((str(a + b), json.dumps({rng.choice(("result", "sum")): a + b}))), f"{a} + {b} = {a + b}"


def _known(rng: random.Random, name: str, endings: tuple[str, ...]) -> Request:
    if name == "add":
        a, b = _numbers(rng)
        result, answer = _sum(rng, a, b)
        text = rng.choice(skills.ADD).replace("{a}", str(a)).replace("{b}", str(b))
        return Request(skills.ask(rng, text), [("add", {"a": a, "b": b})], [result], answer)
    place = words.place(rng)
    table, argument, told = (_WEATHER, "location", _weather) if name == "get_weather" else (_TIME, "city", _time)
    result, answer = told(rng, place)
    text = rng.choice(phrasings.ways(table)).replace("{x}", place)
    if endings and rng.random() < 0.4:
        text += rng.choice(endings)
    shown = text[:1].upper() + text[1:] if rng.random() < 0.65 else text
    if rng.random() < 0.12:
        shown = rng.choice(skills.PREFIXES) + text
    return Request(shown + rng.choice(("?", "?", "?", "", ".")), [(name, {argument: place})], [result], answer)


_TWO_PLACES = """what is the {w} in {x} and in {y};what is the {w} in {x} and {y};{w} in {x} and {y};tell me the {w} in {x} and in {y};the {w} in {x} and the {w} in {y};
what is the {w} in {x}, and what is the {w} in {y};compare the {w} in {x} and {y};{w} for {x} and {y};I need the {w} in {x} and {y};get the {w} of {x} and {y};
check the {w} in {x} and in {y};what's the {w} like in {x} and {y}"""
_BOTH = """what is the {w} in {x} and the {z} in {y};what is the {w} in {x} and what is the {z} in {y};tell me the {w} in {x} and the {z} in {y};
the {w} in {x} and the {z} in {y};I need the {w} in {x} and the {z} in {y};{w} in {x} and {z} in {y};get the {w} in {x} and the {z} in {y}"""


def _double(rng: random.Random, names: list[str]) -> Request:
    """Two calls in one turn."""
    places = [words.place(rng), words.place(rng)]
    if len(names) == 1:
        picked = names * 2
        text = rng.choice(phrasings.ways(_TWO_PLACES))
    else:
        picked = rng.sample(names, 2)
        text = rng.choice(phrasings.ways(_BOTH))
        if rng.random() < 0.3:
            places[1] = places[0]
    word = {"get_weather": "weather", "get_time": "time"}
    for slot, value in {"{w}": word[picked[0]], "{z}": word[picked[1]], "{x}": places[0], "{y}": places[1]}.items():
        text = text.replace(slot, value)
    calls, results, answers = [], [], []
    for name, place in zip(picked, places, strict=True):
        argument, told = ("location", _weather) if name == "get_weather" else ("city", _time)
        result, answer = told(rng, place)
        calls.append((name, {argument: place}))
        results.append(result)
        answers.append(answer)
    text = text[:1].upper() + text[1:] if rng.random() < 0.65 else text
    return Request(text + rng.choice(("?", "?", "", ".")), calls, results, " ".join(answers))


def asked(rng: random.Random, request: Request, *, closed: bool) -> list[Message]:
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(request.calls)
    ]
    messages: list[Message] = [
        {"role": "user", "content": request.prompt},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    if closed:
        messages += [
            {"role": "tool", "tool_call_id": f"call_{i}", "content": text} for i, text in enumerate(request.results)
        ]
        messages.append({"role": "assistant", "content": request.answer})
    return messages


def conversation(
    rng: random.Random, coin: Coin = words.made_up, endings: tuple[str, ...] = ()
) -> tuple[list[Message], list[Tool]]:
    """Messages (without a system message) and the tools that go with them."""
    known = rng.sample(sorted(_KNOWN), rng.choice((0, 0, 1, 1, 1, 2, 2, 3)))
    offers = [(known_tool(rng, name), name) for name in known]
    unseen: list[Request] = []
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3)) if known else rng.choice((1, 1, 1, 2, 3))):
        tool, request = _unseen(rng, coin)
        if tool["function"]["name"] not in known:
            offers.append((tool, ""))
            unseen.append(request)
    rng.shuffle(offers)
    messages: list[Message] = []
    places = [name for name in known if name != "add"]
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        kind = rng.random()
        if kind < 0.2:
            for user, assistant in rng.choice(
                (
                    skills.talk,
                    skills.core_talk,
                    skills.geography,
                    skills.topic,
                    skills.about,
                    skills.unknown,
                    skills.repeat,
                )
            )(rng):
                messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        elif kind < 0.35 and places:
            messages += asked(rng, _double(rng, places), closed=rng.random() < 0.7)
        elif unseen and (kind < 0.72 or not known):
            messages += asked(rng, unseen.pop(), closed=rng.random() < 0.75)
        elif known:
            messages += asked(rng, _known(rng, rng.choice(known), endings), closed=rng.random() < 0.75)
        if messages and messages[-1].get("tool_calls"):
            break  # a call without its result ends the conversation
    if not messages:
        messages = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello! How can I help you?"},
        ]
    return messages, [tool for tool, _ in offers]
