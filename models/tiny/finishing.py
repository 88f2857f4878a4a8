"""The second helping of training: what was weak after the first, namely sums, copying, and questions inside small talk."""
# ruff: noqa: E501, SIM905 - the tables read best in long rows

import random

import facts
import phrasings
import skills
import stories
import words
from skills import Skill, Turn

_BEFORE = """My teacher asked me this: ;I was thinking about this last night. ;My daughter asked: ;This is for a test at school: ;I always forget this. ;
It is for my homework. ;Please help me with this one: ;You surely know this. ;Let us see if you know: ;My sister and I disagree. ;I read about it in the news. ;
Someone at work asked me: ;Here is an easy one. ;I need this for a trip. ;Trivia time: ;I am new here. ;Let me ask you something. ;I have been wondering: ;
My neighbor would like to know: ;We were talking about it at dinner. ;I should know this, but I do not. ;A friend of mine asked: ;I am writing a letter. ;
Nice weather today. ;This may sound silly, but ;I saw it on television. ;For my class: ;Be honest: ;Think first. ;No hurry. ;Here comes a question. ;I am learning. ;
In our game somebody asked: ;One more thing: ;Let us talk about something else. ;My father says that you know everything. ;Another one: ;Sorry to bother you. ;
The next question in the book is: ;We play a game: ;I could not find it: ;Please be so kind: ;I would like to know: ;A little question: ;Back to work: """
_AFTER = """ I forgot.; I need it for school.; My friend wants to know.; Can you help?; I am not sure.; Please remind me.; Tell me, please.; What should I tell her?;
 It would help me a lot.; I keep forgetting.; Can you tell me?; I never learned it.; Please answer in a sentence.; Do you know it?; That is all I need.; I am curious.;
 What do I write?; Thank you in advance.; It is important to me.; A short answer is enough.; I should remember it.; Can you remind us?; My class wants to know.; What would you say?"""
_TOPIC = """my neighbor asked what {x} is;somebody wants to know what {x} is;I was asked what {x} is;what should I answer when someone asks what {x} is;
I hear a lot about {x}, what does it mean;I read about {x}, can you explain it;{x} - what is that;do you happen to know what {x} is;I have no idea what {x} is;
people talk about {x}, what is that;everybody talks about {x}. what is it;what is {x}, in one sentence;could you say in a sentence what {x} is;my child asks what {x} is;
please define {x} for me;what is this {x} that they talk about;a definition of {x}, please;I need to explain {x} to my class. what is it;a sentence about {x}"""
_CAPITAL = """remind me of the capital of {x};I cannot remember the capital of {x};what was the capital of {x} again;I travel to the capital of {x}, which city is it;
my trip goes to the capital of {x}. which city is that;a geography question: the capital of {x};what is {x}'s capital called;we learn the capital of {x} at school. what is it;
I am looking for the capital of {x};the name of {x}'s capital, please;I do not know the capital of {x};how is the capital of {x} called;which capital belongs to {x};
I am going to the capital of {x}. where am I going;what city do I see when I visit the capital of {x};the quiz wants the capital of {x}"""
_POPULATION = """how many people make their home in {x};give me an estimate of the population of {x};what is the total number of people in {x};how many people are living in {x} today;
is {x} a big country, how many people live there;how crowded is {x}, how many people live there;I wonder how many people live in {x};I am looking for the population of {x};
can you estimate the population of {x};what size is the population of {x};how large is {x}, by population;I would like to know how big the population of {x} is;
how many persons live in {x};I do not know how many people live in {x};in {x}, how many people live"""
_POPULATION_AGAIN = """thank you. and its population;ok, and how many people live there;what about the population then;how about its population;could you tell me its population too;
and the population, please;good. how many people live there;interesting. and what is the population;next, its population;now the population;I also want its population;
and how big is the population there;so how many people live there;do you also know the population;how many people would that be"""
_CAPITAL_AGAIN = """thank you. and its capital;ok, and what is the capital;great, now its capital;what about the capital then;could you tell me its capital too;
good. which city is the capital;interesting. and the capital;next, its capital;I also want its capital;do you also know the capital;so what is the capital"""
_HELLO = "hi;hello;hey;good morning;good evening;good afternoon;good day;greetings;hello hello;hi hi;oh hello;well, hi;ah, hey;hello, hi;hi and hello".split(
    ";"
)
_WHOM = ";; there; friend; model; bot; again; you; all; computer; little model; ChatFleet; my friend; dear friend; buddy; assistant; everybody; old friend".split(
    ";"
)
_MORE = ";;;, good to see you;, nice to see you;, how nice to see you;. I am back;. Here I am;, lovely day;, it is good to be here;. Long time no see;, glad to meet you;, pleased to meet you".split(
    ";"
)
_THANKS = "thanks;thank you;many thanks;thank you very much;thank you so much;great, thank you;lovely, thanks;super, thanks;good, thank you;ok, thanks".split(
    ";"
)
_WHY = ";;. that helped;. that was helpful;. that is right;. very kind of you;, you helped me a lot;. this is what I wanted;, good answer;. that is all I wanted;, I am grateful;, well done;. you are very kind".split(
    ";"
)
_BYE = "bye;goodbye;bye bye;see you;see you later;good night;goodbye then;ok, goodbye;so long;well, goodbye;thanks and goodbye".split(
    ";"
)
_UNTIL = ";;, friend;, model;. see you tomorrow;. I have to leave;. until tomorrow;, I am off to bed;. talk to you soon;, it was nice;. I must stop now;, have a good day;. I am off".split(
    ";"
)
_NAMES = """do you have a name that I can use;with whom am I speaking;I would like to know your name;I forgot your name;your name, please;say who you are;who is answering me;
which assistant am I talking to;please say your name;do people give you a name;I do not know your name;what was your name again;who am I chatting with;
what kind of model are you;hello, who are you;hi, what is your name;so who are you;what is the name of this model;I want to know who you are"""


def _rows(table: str) -> list[str]:
    return [way.lstrip("\n") for way in table.split(";")]


ENDINGS = (" now", " today", " right now", " at the moment", " this morning", " tonight", " please", " currently")
"""What may follow a place without being part of it."""
BEFORE, AFTER = _rows(_BEFORE), _rows(_AFTER)
CAPITAL, CAPITAL_AGAIN = phrasings.ways(_CAPITAL), phrasings.ways(_CAPITAL_AGAIN)
POPULATION, POPULATION_AGAIN = phrasings.ways(_POPULATION), phrasings.ways(_POPULATION_AGAIN)
TOPIC, NAMES = phrasings.ways(_TOPIC), phrasings.ways(_NAMES)


def framed(skill: Skill, share: float) -> Skill:
    """The skill, with a `share` of its questions inside other talk."""

    def within(rng: random.Random) -> list[Turn]:
        turns = []
        for user, assistant in skill(rng):
            if rng.random() < share:
                kind = rng.random()
                before = rng.choice(BEFORE) if kind < 0.7 else ""
                after = rng.choice(AFTER) if kind > 0.5 else ""
                if after and user[-1] not in "?!.":
                    user += rng.choice("?.")
                user = before + user + after
            turns.append((user, assistant))
        return turns

    return within


def geography(rng: random.Random) -> list[Turn]:
    country, _, _ = rng.choice(facts.COUNTRIES)
    about_capital = rng.random() < 0.5
    turns: list[Turn] = []
    while not turns or rng.random() < 0.6:
        if not turns:
            table = CAPITAL if about_capital else POPULATION
            if rng.random() < 0.4:
                table = skills.CAPITAL if about_capital else skills.POPULATION
        else:
            about_capital = not about_capital
            table = CAPITAL_AGAIN if about_capital else POPULATION_AGAIN
        text = rng.choice(table).replace("{x}", country)
        answer = skills.capital_answer(country) if about_capital else skills.population_answer(country)
        turns.append((skills.ask(rng, text), answer))
    return turns


def topic(rng: random.Random) -> list[Turn]:
    names, sentence = rng.choice(facts.TOPICS)
    name = rng.choice(names) if rng.random() < 0.2 and not names[-1].endswith("s") else names[0]
    return [(skills.ask(rng, rng.choice(TOPIC).replace("{x}", name)), sentence)]


def unknown(rng: random.Random) -> list[Turn]:
    """The new phrasings, about what it does not know."""
    if rng.random() < 0.5:
        thing = (
            rng.choice(("", "a ", "the ")) + words.made_up(rng)
            if rng.random() < 0.4
            else rng.choice(skills.UNKNOWN_THINGS)
        )
        text = rng.choice(TOPIC).replace("{x}", thing)
    else:
        name = rng.choice(facts.UNKNOWN_PLACES) if rng.random() < 0.4 else words.made_up(rng).title()
        text = rng.choice(CAPITAL + POPULATION).replace("{x}", name)
    return [(skills.ask(rng, text), facts.UNKNOWN)]


def courtesy(rng: random.Random) -> list[Turn]:
    """Greetings, thanks and goodbyes put together from parts, and its name."""
    kind = rng.random()
    if kind < 0.4:
        hello = rng.choice(_HELLO)
        word = "Good " + hello.split()[1] if hello.startswith("good ") and "day" not in hello else "Hello"
        return [(skills.ask(rng, hello + rng.choice(_WHOM) + rng.choice(_MORE), "!"), f"{word}! How can I help you?")]
    if kind < 0.6:
        return [(skills.ask(rng, rng.choice(_THANKS) + rng.choice(_WHY), "!"), "You are welcome!")]
    if kind < 0.75:
        return [(skills.ask(rng, rng.choice(_BYE) + rng.choice(_UNTIL), "!"), "Goodbye! Have a nice day.")]
    return [(skills.ask(rng, rng.choice(NAMES)), facts.ABOUT_ME)]


def _phrase(rng: random.Random) -> str:
    count = rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
    parts = [words.spelled(rng) if rng.random() < 0.6 else words.mashed(rng) for _ in range(count)]
    return words.cased(rng, " ".join(parts))


def copy(rng: random.Random) -> list[Turn]:
    """Phrases of any letters, repeated."""
    phrase = _phrase(rng)
    return [(skills.instruction(rng, rng.choice(skills.REPEAT), phrase), phrase)]


def shout(rng: random.Random) -> list[Turn]:
    """Phrases of any letters, in upper case."""
    phrase = _phrase(rng)
    return [(skills.instruction(rng, rng.choice(skills.UPPER), phrase), phrase.upper())]


def story(rng: random.Random) -> list[Turn]:
    """Stories about heroes that no story was about before."""
    adjective = rng.choice(words.ADJECTIVES)
    noun = rng.choice(words.NOUNS) if rng.random() < 0.5 else words.spelled(rng)
    hero = f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun}"
    prompt, text = stories.asked_about(rng, hero)
    return [(prompt, text)]


def many_sums(rng: random.Random) -> list[Turn]:
    """Five to twelve sums in a row: their digits are few, so they must come often."""
    turns: list[Turn] = []
    for _ in range(rng.randint(5, 12)):
        turns += skills.add(rng)[:1]
    return turns


def sheet_of_sums(rng: random.Random) -> str:
    """A bare document of sums, one a line."""
    pairs = [skills.pair(rng) for _ in range(rng.randint(8, 25))]
    return "\n".join(f"{a} + {b} = {a + b}" for a, b in pairs)


# Shares of the turns in the second helping.
SHARES: list[tuple[Skill, float]] = [
    (framed(skills.geography, 0.2), 5), (framed(geography, 0.3), 8), (framed(skills.topic, 0.3), 5), (framed(topic, 0.3), 6),
    (framed(skills.question, 0.5), 7), (skills.talk, 4), (skills.core_talk, 3), (courtesy, 7), (framed(skills.about, 0.25), 4),
    (framed(skills.unknown, 0.3), 6), (framed(unknown, 0.3), 5), (framed(skills.add, 0.2), 5), (many_sums, 2.2), (skills.repeat, 6), (copy, 7),
    (skills.upper, 6), (shout, 7), (skills.lower, 1), (skills.remember, 4), (skills.count, 0.4), (skills.as_json, 1), (skills.story, 1), (story, 1.5),
]  # fmt: skip
