"""The evaluation's cases: held-out phrasings and words, and checks of what an answer says."""
# ruff: noqa: E501 - a case a line

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import facts
import heldout

Check = Callable[[str], bool]
Calls = list[tuple[str, dict[str, Any]]]
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Turn:
    """What the user says, or the results of the calls just made, and what must hold of the answer."""

    check: Check
    prompt: str = ""
    results: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A conversation, or with `raw` a bare prompt. Every turn is scored."""

    skill: str
    turns: list[Turn]
    system: str | None = None
    tools: list[dict[str, Any]] | None = None
    raw: bool = False


def parse_calls(answer: str) -> Calls | None:
    """The calls of an answer that is nothing but well-formed calls, else None."""
    bodies = CALL.findall(answer)
    if not bodies or CALL.sub("", answer).strip():
        return None
    try:
        calls = [json.loads(body) for body in bodies]
    except ValueError:
        return None
    if not all(isinstance(call, dict) and set(call) == {"name", "arguments"} for call in calls):
        return None
    return [(call["name"], call["arguments"]) for call in calls]


def says(*parts: str) -> Check:
    """All parts occur, as whole words, in any case."""
    patterns = [re.compile(rf"(?<!\w){re.escape(part.lower())}(?!\w)") for part in parts]
    return lambda answer: all(pattern.search(answer.lower()) for pattern in patterns)


def names_only(capital: str) -> Check:
    """The capital occurs and no other capital does."""
    others = [row[1].lower() for row in facts.COUNTRIES if row[1] != capital and row[1] not in capital]
    right = says(capital.rstrip("."))
    # Names such as Rome and Lima could sit inside other words, hence whole words.
    wrong = re.compile("|".join(rf"(?<!\w){re.escape(other)}(?!\w)" for other in others))
    return lambda answer: right(answer) and not wrong.search(answer.lower().replace(capital.lower(), ""))


def _content_words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z0-9']+", text.lower()) if len(word) > 3}


_SENTENCES = [sentence for _, sentence in facts.TOPICS] + [answer for _, answer in facts.QUESTIONS]


def means(sentence: str) -> Check:
    """One sentence that shares 3 in 4 content words with `sentence` and is nearer to it than to any other fact."""
    wanted = _content_words(sentence)

    def check(answer: str) -> bool:
        given = _content_words(answer)
        nearest = max(
            _SENTENCES, key=lambda other: len(_content_words(other) & given) / len(_content_words(other) | given)
        )
        one_sentence = answer.strip().endswith(".") and len(re.findall(r"[.!?](?:\s|$)", answer.strip())) == 1
        return nearest == sentence and one_sentence and len(wanted & given) >= 0.75 * len(wanted)

    return check


def equals(text: str) -> Check:
    return lambda answer: answer.strip() == text


def calls(*expected: tuple[str, dict[str, Any]]) -> Check:
    return lambda answer: parse_calls(answer) == list(expected)


def sums_to(total: int) -> Check:
    return lambda answer: (re.findall(r"\d+", answer) or [""])[-1] == str(total)


def both(first: Check, second: Check) -> Check:
    return lambda answer: first(answer) and second(answer)


def begins(word: str) -> Check:
    return lambda answer: re.match(rf"{re.escape(word)}(?!\w)", answer) is not None


def shouts(answer: str) -> bool:
    return answer == answer.upper() and any(letter.isalpha() for letter in answer)


def greets(answer: str) -> bool:
    return re.match(r"(?i)(hello|hi|hey|good (day|morning|evening|afternoon))\b", answer) is not None


def is_story(hero: str = "") -> Check:
    """Several different sentences that mention the hero, with an end; the runner fails what hits the token limit."""

    def check(answer: str) -> bool:
        sentences = [part for part in re.split(r"(?<=[.!?])\s+", answer.strip()) if part]
        return (
            len(sentences) >= 5
            and len(set(sentences)) == len(sentences)
            and 30 <= len(answer.split()) <= 220
            and answer.strip()[-1] in '.!"'
            and hero in answer
        )

    return check


def _ask(skill: str, prompt: str, check: Check, system: str | None = None) -> Case:
    return Case(skill, [Turn(check, prompt)], system)


def _phrases(rng: random.Random, count: int) -> list[str]:
    """Phrases of one to four held-out words, a third of them with capitals."""
    made = []
    for index in range(count):
        text = " ".join(rng.sample(heldout.WORDS, 1 + index % 4))
        made.append(text.title() if index % 6 == 1 else text.upper() if index % 6 == 4 else text)
    return made


def _geography(rng: random.Random) -> list[Case]:
    made: list[Case] = []
    for index, (country, capital, population) in enumerate(facts.COUNTRIES):
        ask_capital = heldout.CAPITAL[index % len(heldout.CAPITAL)].format(x=country)
        ask_population = heldout.POPULATION[index % len(heldout.POPULATION)].format(x=country)
        made.append(_ask("capital", ask_capital, names_only(capital)))
        made.append(_ask("population", ask_population, says(population)))
        other, other_capital, other_population = rng.choice([row for row in facts.COUNTRIES if row[0] != country])
        if index % 3 == 0:  # the latest country is meant, not the first
            turns = [
                Turn(names_only(other_capital), rng.choice(heldout.CAPITAL).format(x=other)),
                Turn(names_only(capital), ask_capital),
                Turn(says(population), rng.choice(heldout.POPULATION_AGAIN)),
            ]
        elif index % 3 == 1:
            turns = [
                Turn(names_only(capital), ask_capital),
                Turn(says(population), rng.choice(heldout.POPULATION_AGAIN)),
            ]
        else:
            turns = [
                Turn(says(population), ask_population),
                Turn(names_only(capital), rng.choice(heldout.CAPITAL_AGAIN)),
            ]
        made.append(Case("reference", turns))
    return made


def _talk() -> list[Case]:
    made = [_ask("greeting", text, greets) for text in heldout.GREET]
    made += [_ask("name", text, says(facts.NAME)) for text in heldout.NAME]
    made += [_ask("what ChatFleet is", text, says("serves language models", "endpoint")) for text in heldout.CHATFLEET]
    made += [_ask("serve another model", text, says("chatfleet serve")) for text in heldout.SERVE]
    made += [_ask("thanks, goodbye", text, says("welcome")) for text in heldout.THANKS]
    made += [_ask("thanks, goodbye", text, says("goodbye")) for text in heldout.BYE]
    made += [_ask("says it does not know", text, says("do not know")) for text in heldout.UNKNOWN]
    for index, name in enumerate(heldout.NAMES):
        asked = heldout.REMEMBER[index % len(heldout.REMEMBER)]
        made.append(Case("remembers a name", [Turn(says(name), f"Hello, my name is {name}."), Turn(says(name), asked)]))
    return made


def _knowledge() -> list[Case]:
    made = []
    for index, (names, sentence) in enumerate(facts.TOPICS):
        made.append(
            _ask("common questions", heldout.TOPIC[index % len(heldout.TOPIC)].format(x=names[0]), means(sentence))
        )
    for index, (ways, answer) in enumerate(facts.QUESTIONS):
        frame = heldout.QUESTION_FRAMES[index % len(heldout.QUESTION_FRAMES)]
        made.append(_ask("common questions", frame.format(x=ways[0]), means(answer)))
    return made


def _sums(rng: random.Random) -> list[Case]:
    pairs = [(a, b) for a in range(100) for b in range(100) if heldout.held_out_pair(a, b)]
    return [
        _ask("addition", template.format(a=a, b=b), sums_to(a + b))
        for (a, b), template in zip(rng.sample(pairs, 60), cycle(heldout.ADD), strict=False)
    ]


def _copying(rng: random.Random) -> list[Case]:
    made = [
        _ask("repeat", template.format(x=phrase), equals(phrase))
        for phrase, template in zip(_phrases(rng, 36), cycle(heldout.REPEAT), strict=False)
    ]
    made += [
        _ask("upper case", template.format(x=phrase), equals(phrase.upper()))
        for phrase, template in zip(_phrases(rng, 36), cycle(heldout.UPPER), strict=False)
    ]
    return made


def _systems(rng: random.Random) -> list[Case]:
    made = []
    for index in range(20):
        country, capital, _ = rng.choice(facts.COUNTRIES)
        names, sentence = rng.choice(facts.TOPICS)
        word = heldout.WORDS[index]
        upper, begin = (table[index % 5] for table in (heldout.SYSTEM_UPPER, heldout.SYSTEM_BEGIN))
        in_upper = [
            Turn(both(shouts, names_only(capital)), f"What is the capital of {country}?"),
            Turn(both(shouts, means(sentence)), f"What is {names[0]}?"),
            Turn(both(shouts, equals(word.upper())), f"Say '{word}'"),
        ]
        made.append(Case("system: upper case", in_upper[index % 3 : index % 3 + 1], upper))
        chosen = word.capitalize() if index % 2 else word
        begun = [
            Turn(both(begins(chosen), names_only(capital)), f"What is the capital of {country}?"),
            Turn(both(begins(chosen), says(facts.NAME)), "What is your name?"),
        ]
        made.append(Case("system: first word", begun[index % 2 :][:1], begin.format(x=chosen)))
    return made


def _stories(rng: random.Random) -> list[Case]:
    raw = ["Once upon a time", "Once upon a time,", "Once upon a time there was"]
    heroes = [
        f"{adjective} {noun}"
        for adjective, noun in zip(("a tiny", "a brave", "a young", "a kind"), heldout.WORDS[10:30:5], strict=True)
    ]
    made = [Case("story, raw prompt", [Turn(is_story(), prompt)], raw=True) for prompt in raw]
    made += [
        Case("story, raw prompt", [Turn(is_story(), f"Once upon a time there was {hero} who lived")], raw=True)
        for hero in heroes
    ]
    made += [
        _ask("story, chat", text, is_story())
        for text in ("Once upon a time", "Please continue: Once upon a time", "I would love to hear a story now.")
    ]
    made += [
        _ask("story, chat", f"Please write a story about {hero}!", is_story(hero.split(" ", 1)[1])) for hero in heroes
    ]
    return made


def tool(name: str, description: str, properties: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


WEATHER = tool(
    "get_weather", "Look up today's weather somewhere.", {"location": {"type": "string", "description": "Where"}}
)
TIME = tool("get_time", "Look up the clock time of a city.", {"city": {"type": "string", "description": "Which city"}})
ADD = tool("add", "Computes a + b.", {"a": {"type": "integer"}, "b": {"type": "integer"}})


def _tools(rng: random.Random) -> list[Case]:
    made: list[Case] = []
    pairs = [(a, b) for a in range(100) for b in range(100) if heldout.held_out_pair(a, b)]
    for index, city in enumerate(heldout.CITIES):
        a, b = rng.choice(pairs)
        degrees, sky, clock = 5 + 3 * index, ("sunny", "rainy", "cloudy")[index % 3], f"1{index % 10}:2{index % 6}"
        offers = [[WEATHER], [WEATHER, TIME, ADD], [ADD, WEATHER], [TIME, WEATHER]][index % 4]
        weather = ("get_weather", {"location": city})
        asked = (
            "Please look up the weather in {x}.",
            "Could you tell me how the weather is in {x}?",
            "How does the weather look in {x} today?",
        )
        prompt = asked[index % 3].format(x=city)
        made.append(Case("calls a known function", [Turn(calls(weather), prompt)], tools=offers))
        result = (json.dumps({"temperature": degrees, "condition": sky}), f"{sky}, {degrees} degrees")[index % 2]
        told = [
            Turn(calls(weather), f"What is the weather in {city}?"),
            Turn(says(str(degrees), sky), results=[result]),
        ]
        made.append(Case("answers from the result", told[:], tools=offers))
        timed = ("get_time", {"city": city})
        clocks = [
            Turn(calls(timed), f"Which time is it in {city} now?"),
            Turn(says(clock), results=[json.dumps({"time": clock})]),
        ]
        made.append(Case("calls a known function", clocks[:1], tools=[TIME, ADD] if index % 2 else [WEATHER, TIME]))
        made.append(
            Case(
                "answers from the result", [Turn(calls(timed), f"What time is it in {city}?"), clocks[1]], tools=[TIME]
            )
        )
        summed = Turn(calls(("add", {"a": a, "b": b})), heldout.ADD[index % len(heldout.ADD)].format(a=a, b=b))
        made.append(Case("calls a known function", [summed], tools=[ADD, TIME] if index % 2 else [ADD]))
        other = heldout.CITIES[(index + 3) % len(heldout.CITIES)]
        two = (weather, ("get_weather", {"location": other})) if index % 2 else (weather, ("get_time", {"city": other}))
        wish = (
            "How is the weather in {x} and in {y}?" if index % 2 else "I want the weather in {x} and the time in {y}."
        )
        made.append(
            Case("two calls in one turn", [Turn(calls(*two), wish.format(x=city, y=other))], tools=[WEATHER, TIME])
        )
    values = [
        *heldout.NAMES,
        *(word.upper() for word in heldout.WORDS[:5]),
        *(f"{word}-{i}7" for i, word in enumerate(heldout.WORDS[5:10])),
    ]
    for index, value in enumerate(values):
        name, argument, description, wish = heldout.FUNCTIONS[index % len(heldout.FUNCTIONS)]
        offered = tool(name, description, {argument: {"type": "string"}})
        offers = [offered] if index % 2 else [WEATHER, offered]
        expected = calls((name, {argument: value}))
        named = ("Could you call {f} with '{v}'?", "Please make a call to {f} with {v}.")[index % 3 == 0]
        made += [
            Case("unseen function, named", [Turn(expected, named.format(f=name, v=value))], tools=offers),
            Case("unseen function, described", [Turn(expected, wish.format(v=value))], tools=offers),
        ]
        word = heldout.WORDS[(index + 11) % len(heldout.WORDS)]
        turns = [
            Turn(calls((name, {argument: value})), f"Please call {name} with '{value}'."),
            Turn(says(word), results=[word]),
        ]
        made.append(Case("answers from the result", turns[:], tools=offers))
    plain = [Turn(names_only("Paris"), "What is the capital of France?"), Turn(says(facts.NAME), heldout.NAME[0])]
    made += [
        Case("tools offered, none needed", [turn], tools=offers)
        for turn in plain
        for offers in ([WEATHER], [ADD, TIME], [WEATHER, TIME, ADD])
    ]
    made += [
        Case("tools offered, none needed", [Turn(greets, text)], tools=[WEATHER, ADD]) for text in heldout.GREET[:4]
    ]
    return made


def _long(rng: random.Random) -> list[Case]:
    """Ten turns each, with and without a system message; the name of the first turn is asked for in the last."""
    made = []
    for index, name in enumerate(heldout.NAMES[:6]):
        countries = rng.sample(facts.COUNTRIES, 3)
        phrase = heldout.WORDS[index]
        turns = [Turn(says(name), f"Hi, I am {name}.")]
        for country, capital, population in countries:
            turns.append(Turn(names_only(capital), rng.choice(heldout.CAPITAL).format(x=country)))
            turns.append(Turn(says(population), rng.choice(heldout.POPULATION_AGAIN)))
        turns.append(Turn(equals(phrase), f"Please echo this back to me: {phrase}"))
        turns.append(Turn(says(facts.NAME), "Remind me, what is your name?"))
        turns.append(Turn(says(name), heldout.REMEMBER[index % 3]))
        made.append(Case("ten-turn conversations", turns, "You are a helpful assistant." if index % 2 else None))
    return made


def all_cases(seed: int = 7) -> list[Case]:
    rng = random.Random(seed)
    return [
        *_talk(), *_geography(rng), *_knowledge(), *_sums(rng), *_copying(rng), *_systems(rng), *_stories(rng),
        *_tools(rng), *_long(rng),
    ]  # fmt: skip
