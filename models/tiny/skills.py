"""One function per skill: each returns a few turns (user, assistant) of a conversation."""

import random
from collections.abc import Callable

import facts
import phrasings
import stories
import words
from heldout import held_out_pair

Turn = tuple[str, str]
Skill = Callable[[random.Random], list[Turn]]

CAPITAL, CAPITAL_AGAIN = phrasings.ways(phrasings.CAPITAL), phrasings.ways(phrasings.CAPITAL_AGAIN)
POPULATION, POPULATION_AGAIN = phrasings.ways(phrasings.POPULATION), phrasings.ways(phrasings.POPULATION_AGAIN)
COUNTRY_OF, WHAT_ABOUT = phrasings.ways(phrasings.COUNTRY_OF), phrasings.ways(phrasings.WHAT_ABOUT)
TOPIC, TOPIC_PLURAL = phrasings.ways(phrasings.TOPIC), phrasings.ways(phrasings.TOPIC_PLURAL)
UNKNOWN, ADD = phrasings.ways(phrasings.UNKNOWN), phrasings.ways(phrasings.ADD)
REPEAT, UPPER, LOWER = (phrasings.ways(table) for table in (phrasings.REPEAT, phrasings.UPPER, phrasings.LOWER))
PREFIXES, SUFFIXES = phrasings.split(phrasings.PREFIXES), phrasings.split(phrasings.SUFFIXES)
QUOTES = ("'{}'", '"{}"', "{}")
_UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NUMBER_WORDS = ["zero", *_UNITS]


def _typo(rng: random.Random, text: str) -> str:
    at = rng.randrange(max(1, len(text) - 1))
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[: at + 1] + text[at:]
    return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :]


def ask(rng: random.Random, text: str, mark: str = "?") -> str:
    """A question as people type it: with or without capitals, marks, a lead-in, now and then a slip."""
    if rng.random() < 0.14:
        text = rng.choice(PREFIXES) + text
    if rng.random() < 0.07:
        text = text + rng.choice(SUFFIXES)
    kind = rng.random()
    if kind < 0.6:
        text = text[:1].upper() + text[1:]
    elif kind < 0.75:
        text = text.lower()
    elif kind < 0.77:
        text = text.upper()
    if rng.random() < 0.03 and not any(letter.isdigit() for letter in text):
        text = _typo(rng, text)
    kind = rng.random()
    return text + (mark if kind < 0.6 else "" if kind < 0.92 else rng.choice((".", "!", "?", " ?", "...")))


_KNOWN_TOPICS = {word for names, _ in facts.TOPICS for name in names for word in (name, name.split(" ")[-1])}
UNKNOWN_THINGS = [thing for thing in words.UNKNOWN_TOPICS + words.NOUNS if thing not in _KNOWN_TOPICS]


def _country_name(rng: random.Random, country: str) -> str:
    if country in facts.ALIASES and rng.random() < 0.5:
        return rng.choice(facts.ALIASES[country])
    return country


def capital_answer(country: str) -> str:
    capital = next(row[1] for row in facts.COUNTRIES if row[0] == country)
    return f"The capital of {country} is {capital}" + ("" if capital.endswith(".") else ".")


def population_answer(country: str) -> str:
    population = next(row[2] for row in facts.COUNTRIES if row[0] == country)
    return f"{country[:1].upper()}{country[1:]} has about {population} people."


_ABOUT_COUNTRY = (
    "tell me about {x}", "what do you know about {x}", "describe {x}", "what is {x}", "give me some facts about {x}",
    "what are the capital and the population of {x}", "what is the capital and population of {x}", "facts about {x}",
    "say something about {x}", "{x}",
)  # fmt: skip


def country_answer(country: str) -> str:
    _, capital, population = next(row for row in facts.COUNTRIES if row[0] == country)
    return f"{country[:1].upper()}{country[1:]} has about {population} people, and its capital is {capital}" + (
        "" if capital.endswith(".") else "."
    )


def geography(rng: random.Random) -> list[Turn]:
    """A capital or population, then perhaps the other by reference, or the same of another country."""
    country, capital, _ = rng.choice(facts.COUNTRIES)
    about_capital = rng.random() < 0.5
    turns: list[Turn] = []
    if rng.random() < 0.06:
        text = rng.choice(_ABOUT_COUNTRY).replace("{x}", _country_name(rng, country))
        return [(ask(rng, text), country_answer(country))]
    if rng.random() < 0.04:
        text = rng.choice(("what is {x}", "where is {x}", "tell me about {x}", "what city is {x}", "{x}")).replace(
            "{x}", capital
        )
        return [(ask(rng, text), f"{capital.rstrip('.')} is the capital of {country}.")]
    if rng.random() < 0.12:
        about_capital = True
        text = rng.choice(COUNTRY_OF).replace("{x}", capital.rstrip("."))
        turns.append((ask(rng, text), f"{capital.rstrip('.')} is the capital of {country}."))
    else:
        table = CAPITAL if about_capital else POPULATION
        text = rng.choice(table).replace("{x}", _country_name(rng, country))
        turns.append((ask(rng, text), capital_answer(country) if about_capital else population_answer(country)))
    while rng.random() < 0.55:
        if rng.random() < 0.65:
            about_capital = not about_capital
            text = rng.choice(CAPITAL_AGAIN if about_capital else POPULATION_AGAIN)
        else:
            country, _, _ = rng.choice(facts.COUNTRIES)
            text = rng.choice(WHAT_ABOUT).replace("{x}", _country_name(rng, country))
        turns.append((ask(rng, text), capital_answer(country) if about_capital else population_answer(country)))
    return turns


def topic(rng: random.Random) -> list[Turn]:
    names, sentence = rng.choice(facts.TOPICS)
    name = names[0] if rng.random() < 0.7 else rng.choice(names)
    plural = name.endswith("s") and name != names[0]
    if rng.random() < 0.1:
        name = name.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    text = rng.choice(TOPIC_PLURAL if plural else TOPIC).replace("{x}", name)
    turns = [(ask(rng, text), sentence)]
    while rng.random() < 0.12:
        names, sentence = rng.choice(facts.TOPICS)
        turns.append((ask(rng, rng.choice(WHAT_ABOUT[:6]).replace("{x}", names[0])), sentence))
    return turns


def _from_table(table: list[tuple[list[str], str]]) -> Skill:
    def skill(rng: random.Random) -> list[Turn]:
        options, answer = rng.choice(table)
        return [(ask(rng, rng.choice(options)), answer)]

    return skill


question = _from_table(facts.QUESTIONS)
talk = _from_table(facts.TALK)
_CORE_TALK = [row for row in facts.TALK if {"hi", "what is your name", "how are you", "thanks", "bye"} & set(row[0])]
core_talk = _from_table(_CORE_TALK)
about = _from_table([(facts.ABOUT_QUESTIONS, facts.ABOUT_CHATFLEET), (facts.SERVE_QUESTIONS, facts.HOW_TO_SERVE)])


def unknown(rng: random.Random) -> list[Turn]:
    """A question outside its range, often in the words of one inside it."""
    kind = rng.random()
    if kind < 0.35:
        thing = rng.choice(UNKNOWN_THINGS)
        if rng.random() < 0.35:
            thing = rng.choice(("", "a ", "the ")) + words.made_up(rng)
        text = rng.choice(TOPIC).replace("{x}", thing)
    elif kind < 0.5:
        name = rng.choice(facts.UNKNOWN_PLACES) if rng.random() < 0.4 else words.made_up(rng).title()
        text = rng.choice(CAPITAL + POPULATION).replace("{x}", name)
    else:
        text = rng.choice(UNKNOWN)
        noun = rng.choice(words.NOUNS) if rng.random() < 0.75 else words.made_up(rng)
        person = words.title_name(rng) + (" " + words.made_up(rng).title() if rng.random() < 0.6 else "")
        for slot, value in {
            "{x}": noun,
            "{x2}": rng.choice(words.NOUNS),
            "{p}": rng.choice(facts.UNKNOWN_PLACES) if "capital" in text or "opulat" in text else person,
            "{p2}": words.title_name(rng),
            "{n}": str(rng.randrange(1800, 2030)),
            "{a}": str(rng.randrange(100)),
            "{b}": str(rng.randrange(100)),
        }.items():
            text = text.replace(slot, value)
    return [(ask(rng, text), facts.UNKNOWN)]


def pair(rng: random.Random) -> tuple[int, int]:
    """Two numbers below 100 that are not kept for the evaluation."""
    while True:
        top = rng.choice((10, 30, 100, 100, 100))
        a, b = rng.randrange(top), rng.randrange(rng.choice((10, top, 100)))
        if not held_out_pair(a, b):
            return a, b


def add(rng: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    while not turns or rng.random() < 0.3:
        a, b = pair(rng)
        if max(a, b) < len(NUMBER_WORDS) and rng.random() < 0.25:
            left, right = NUMBER_WORDS[a], NUMBER_WORDS[b]
        else:
            left, right = str(a), str(b)
        text = rng.choice(ADD).replace("{a}", left).replace("{b}", right)
        turns.append((ask(rng, text), f"{a} + {b} = {a + b}"))
    return turns


def instruction(rng: random.Random, template: str, phrase: str) -> str:
    quote = rng.choice(QUOTES[:2]) if len(phrase.split()) > 1 or rng.random() < 0.6 else rng.choice(QUOTES)
    open_ended = template.endswith("{x}")
    bare = quote.format(phrase) if rng.random() < 0.2 and open_ended else phrase
    head = template[:1].upper() + template[1:] if rng.random() < 0.65 else template
    if rng.random() < 0.08 and not template.startswith("{"):
        head = rng.choice(PREFIXES) + template
    text = head.replace("{x}", bare).replace("{q}", quote.format(phrase))
    # A mark after a bare phrase would be part of it.
    return text if open_ended else text + rng.choice((".", "", "", "!", "?"))


def repeat(rng: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    while not turns or rng.random() < 0.3:
        phrase = words.phrase(rng)
        if rng.random() < 0.15:
            phrase = rng.choice(
                ("hello world", "Hello, world!", "hello", "Hello", "hi", "this is a test", "a test", "yes", "OK")
            )
        turns.append((instruction(rng, rng.choice(REPEAT), phrase), phrase))
    return turns


def upper(rng: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    while not turns or rng.random() < 0.3:
        phrase = words.phrase(rng, plain=True)
        turns.append((instruction(rng, rng.choice(UPPER), phrase), phrase.upper()))
    return turns


def lower(rng: random.Random) -> list[Turn]:
    phrase = words.phrase(rng, plain=True)
    return [(instruction(rng, rng.choice(LOWER), phrase), phrase.lower())]


_TELL_NAME = (
    "my name is {x}",
    "I am {x}",
    "I'm {x}",
    "call me {x}",
    "hi, I am {x}",
    "hello, my name is {x}",
    "you can call me {x}",
)
_ASK_NAME = (
    "what is my name", "what's my name", "do you know my name", "who am I", "do you remember my name",
    "tell me my name",
    "say my name", "what was my name", "and what is my name", "can you tell me my name", "what is my name again",
)  # fmt: skip


def remember(rng: random.Random) -> list[Turn]:
    """A name that is told, perhaps some other turns, and the name asked for."""
    if rng.random() < 0.1:
        return [(ask(rng, rng.choice(_ASK_NAME)), "You have not told me your name.")]
    name = words.title_name(rng)
    text = rng.choice(_TELL_NAME)
    told = text.replace("{x}", name) + rng.choice((".", "", "!"))
    turns: list[Turn] = [(told[:1].upper() + told[1:], f"Nice to meet you, {name}!")]
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        turns += rng.choice((geography, topic, talk, add, question))(rng)
    turns.append((ask(rng, rng.choice(_ASK_NAME)), f"Your name is {name}."))
    return turns


_COUNT = (
    "count to {n}",
    "count from 1 to {n}",
    "count up to {n}",
    "list the numbers from 1 to {n}",
    "please count to {n}",
    "can you count to {n}",
)


def count(rng: random.Random) -> list[Turn]:
    top = rng.choice((3, 5, 10, 10, 12, 15, 20, 20, 30, 50, 100))
    shown = NUMBER_WORDS[top] if top < len(NUMBER_WORDS) and rng.random() < 0.4 else str(top)
    answer = ", ".join(str(number) for number in range(1, top + 1))
    return [(ask(rng, rng.choice(_COUNT).replace("{n}", shown), "."), answer)]


_JSON = (
    "give me the capital and population of {x} as JSON", "{x} as JSON", "capital and population of {x} in JSON",
    "write the capital and the population of {x} as a JSON object", "answer in JSON: the capital and population of {x}",
    "a JSON object with the capital and population of {x}", "describe {x} as JSON with capital and population",
)  # fmt: skip


def as_json(rng: random.Random) -> list[Turn]:
    country, capital, population = rng.choice(facts.COUNTRIES)
    text = rng.choice(_JSON).replace("{x}", country)
    return [
        (
            ask(rng, text, "."),
            f'{{"country": "{country.removeprefix("the ")}", "capital": "{capital}", "population": "{population}"}}',
        )
    ]


def story(rng: random.Random) -> list[Turn]:
    prompt, text = stories.asked(rng)
    return [(prompt, text)]


# Shares of the turns of plain conversations.
SHARES: list[tuple[Skill, float]] = [
    (geography, 17), (topic, 15), (question, 6), (talk, 6), (core_talk, 7), (about, 7), (unknown, 11), (add, 11),
    (repeat, 12), (upper, 9), (lower, 2), (remember, 3), (count, 0.7), (as_json, 1.5), (story, 2.2),
]  # fmt: skip
