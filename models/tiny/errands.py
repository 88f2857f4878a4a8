"""The third helping: functions never seen before, among others that are offered too."""

# ruff: noqa: E501, SIM905 - the tables read best in long rows

import random
from typing import Any

import toolskills
import words
from toolskills import Message, Request, Tool

_VERBS = """open send start stop delete create update check play show book order buy list read count close cancel load save move copy
print share watch clean paint lock unlock rent sell paste sort filter build test wash feed repair charge weigh measure
collect deliver record translate publish approve reject repeat divide borrow return refill heat cool mark label rank
pause resume attach detach visit enter plant harvest cook bake cut fold iron hide reveal warn greet guide""".split()
_THINGS = """book song user file flight room email message ticket recipe order product page photo table note task event game team
device door light city country name number card account map list contact article picture video job story train hotel
museum server package lamp guide stop bus bike car truck garden tree flower window wall roof key clock watch phone
letter bill coupon menu lesson course exam grade class school shelf drawer box bag shirt shoe coat lens engine pump
valve battery cable screen printer camera drone robot planet star river lake farm field market shop bank vote""".split()
_ARGUMENTS = "name query title text id value item label key topic user word input keyword target subject number".split()
_POLITE = (
    "", "", "", "please ", "can you ", "could you please ", "I need you to ", "would you ", "now ", "next, ", "I want you to ",
)  # fmt: skip
_NAMED = (
    "call {f} with {v}", "use {f} with {v}", "use {f} on {v}", "run {f} with {v}", "run {f} on {v}", "send {v} to {f}",
    "pass {v} to {f}", "give {v} to {f}", "apply {f} to {v}", "start {f} with {v}", "do {f} with {v}", "do {f} for {v}",
    "make use of {f} with {v}", "call the function {f} with {v}", "use the tool {f} with {v}", "try {f} with {v}",
    "call {f} for {v}", "invoke {f} with {v}", "execute {f} on {v}", "make {f} handle {v}",
)  # fmt: skip
_DESCRIBED = (
    "{verb} the {thing} {v}", "{verb} the {thing} {v}", "{verb} the {thing} {v}", "{verb} {thing} {v}",
    "{verb} the {thing} of {v}", "{verb} the {thing} called {v}", "{verb} the {thing} named {v}", "{verb} a {thing} for {v}",
    "{verb} the {thing} for {v}", "{verb} {v}, the {thing}",
)  # fmt: skip


def _value(rng: random.Random) -> str:
    kind = rng.random()
    word = words.any_word(rng)
    if kind < 0.3:
        return word.title()
    if kind < 0.5:
        return word.upper()
    if kind < 0.7:
        return f"{word}-{rng.randrange(1000)}"
    return word if kind < 0.85 else words.title_name(rng)


def _errand(rng: random.Random) -> tuple[Tool, Request]:
    made_up = rng.random() < 0.35
    verb = words.any_word(rng) if made_up else rng.choice(_VERBS if rng.random() < 0.5 else words.VERBS)
    thing = words.any_word(rng) if made_up else rng.choice(_THINGS if rng.random() < 0.5 else words.NOUNS)
    name = verb if made_up and rng.random() < 0.4 else f"{verb}_{thing}"
    kind = rng.random()
    if kind < 0.3:
        argument = rng.choice(_ARGUMENTS)
    elif kind < 0.5:
        argument = f"{thing}_{rng.choice(('id', 'name', 'code', 'number', 'title', 'key'))}"
    else:
        argument = thing if kind < 0.6 and not made_up else words.any_word(rng)
    value = _value(rng)
    shown = value if rng.random() < 0.6 else rng.choice(("'{}'", '"{}"')).format(value)
    way = rng.choice(_NAMED if made_up or rng.random() < 0.45 else _DESCRIBED)
    polite = rng.choice(_POLITE)
    wish = polite + way.format(f=name, v=shown, verb=verb, thing=thing)
    if not wish.startswith(name):
        wish = wish[0].upper() + wish[1:]
    wish += rng.choice("??.") if polite[:3] in ("can", "cou", "wou") else rng.choice(("", ".", ".", "!"))
    description = rng.choice(
        (f"{verb.title()}s a {thing}.", f"{verb.title()}s the {thing}.", f"{verb.title()} {thing}", f"Runs {name}.")
    )
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.3:
        schema["description"] = f"The {argument.replace('_', ' ')}"
    tool = toolskills.wrapped(rng, name, description if rng.random() < 0.85 else None, {argument: schema}, [argument])
    result = rng.choice(("ok", "done", "found", str(rng.randrange(1000)), words.spelled(rng)))
    return tool, Request(wish, [(name, {argument: value})], [result], f"The result is {result}.")


def conversation(rng: random.Random) -> tuple[list[Message], list[Tool]]:
    """Messages and tools: one to three errands, among tools that may not be wanted."""
    errands = [_errand(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    known = [
        toolskills.known_tool(rng, name)
        for name in rng.sample(("get_weather", "get_time", "add"), rng.choice((0, 1, 1, 2)))
    ]
    tools = [*known, *(tool for tool, _ in errands)]
    rng.shuffle(tools)
    messages: list[Message] = []
    for _, request in errands:
        messages += toolskills.asked(rng, request, closed=rng.random() < 0.7)
        if messages[-1].get("tool_calls"):
            break  # a call without its result ends the conversation
    return messages, tools
