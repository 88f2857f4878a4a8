"""What only the evaluation may use. `generate.py` asserts that no training text contains any of it."""
# ruff: noqa: SIM905 - word lists read best as running text

import re
from collections.abc import Iterable

WORDS = """walnut lantern pumpkin velvet compass dolphin saddle marble blossom tulip falcon glider hazel ivory jungle
kernel lobster magpie nutmeg otter pebble quartz raven sunset turnip umbrella vanilla willow yogurt zipper""".split()
NAMES = "Priya Walter Ingrid Tobias Marta Hugo Nadia Stefan Gloria Ravi".split()
CITIES = "Kyoto Venice Barcelona Glasgow Marrakesh Portland Krakow Bergen Osaka Turin".split()
# (function, its one argument, its description, what the user wants it to do)
FUNCTIONS = [
    ("fetch_invoice", "customer", "Fetches the invoice of a customer.", "Fetch the invoice of {v}."),
    ("scan_barcode", "code", "Scans a barcode.", "Scan the barcode {v}."),
    ("tune_piano", "model", "Tunes a piano.", "Tune the piano {v}."),
    ("rate_movie", "title", "Rates a movie.", "Rate the movie {v}."),
    ("archive_report", "name", "Archives a report.", "Archive the report {v}."),
    ("trace_parcel", "tracking", "Traces a parcel.", "Trace the parcel {v}."),
    ("mute_channel", "channel", "Mutes a channel.", "Mute the channel {v}."),
    ("inspect_sensor", "sensor_id", "Inspects a sensor.", "Inspect the sensor {v}."),
    ("zorvik", "glim", "Does a zorvik.", "Call zorvik with {v}."),
    ("praxel_tonder", "wib", "Runs praxel tonder.", "Use praxel_tonder on {v}."),
]

CAPITAL = [
    "I forgot the name of the capital of {x}, can you remind me?",
    "If I fly to the capital of {x}, in which city do I land?",
    "Which city serves as the capital of {x}?",
    "Help me with geography: what is {x}'s capital city?",
    "My homework asks for the capital of {x}.",
]
POPULATION = [
    "Could you estimate how many people live in {x}?",
    "What is the total population of {x}?",
    "How many people call {x} home?",
    "Around how many people are living in {x}?",
    "I am curious how large {x}'s population is.",
]
POPULATION_AGAIN = [
    "Thanks! And roughly how many people live there?",
    "And what would its population be?",
    "Could you also give me the population?",
    "How many people live in that country, about?",
    "Now I want to know its population.",
]
CAPITAL_AGAIN = ["Nice. And which city is its capital then?", "Could you also give me its capital?"]
TOPIC = [
    "Could you please explain to me what {x} is?",
    "My friend asked me what {x} is. What should I say?",
    "Give a one-sentence definition of {x}.",
    "I keep hearing about {x}. What is it?",
    "In a few words: what is {x}?",
]
QUESTION_FRAMES = ["My son wants to know: {x}?", "Here is something I always wanted to ask: {x}?", "A quiz asks: {x}?"]
GREET = [
    "Hello and good morning to you!",
    "Hi there, nice to meet you",
    "hey hey",
    "Hello, dear model!",
    "Hi everyone!",
    "Well hello",
    "Good day to you!",
    "hello?",
    "Hey, good evening!",
    "Hi, it is me again.",
]
NAME = [
    "May I ask what your name is?",
    "Please tell me who you are.",
    "How should I address you?",
    "what name do you go by",
    "Say, who are you exactly?",
    "Who do I have the pleasure of talking with?",
    "I did not catch your name.",
    "Remind me, what is your name?",
    "Which assistant are you?",
    "Do people call you something?",
]
CHATFLEET = [
    "Could you tell me what ChatFleet is about?",
    "I would like to understand ChatFleet.",
    "What exactly is ChatFleet?",
    "My boss asked me what ChatFleet is.",
    "In one sentence, what is ChatFleet?",
    "what's this chatfleet about",
    "Somebody mentioned ChatFleet. What is it?",
    "Give me a summary of ChatFleet.",
]
SERVE = [
    "How would I serve some other model?",
    "Which command do I need to serve another model?",
    "I want to serve a different model, how does that work?",
    "How can I make ChatFleet serve a bigger model?",
    "Is there a way to serve my own model?",
    "Please explain how to run another model.",
    "what must I type to serve a different model",
    "How do I get a larger model running?",
]
ADD = [
    "Could you add {a} and {b} for me?",
    "My homework says {a} + {b}. What is it?",
    "What number is {a} plus {b}?",
    "Tell me the sum of {a} and {b}.",
    "{a} + {b} equals what?",
    "Please compute {a} plus {b}.",
]
REPEAT = [
    "Kindly repeat the following words: {x}",
    "Please echo this back to me: {x}",
    'I would like you to say "{x}"',
    "Now repeat after me: {x}",
    "Just repeat this: {x}",
    "Could you say '{x}'?",
]
UPPER = [
    "How does '{x}' look in upper case?",
    "Please convert the following to upper case: {x}",
    'Rewrite "{x}" in capital letters.',
    "I need '{x}' in uppercase.",
    "Could you write '{x}' in upper case?",
    "Uppercase the words: {x}",
]
SYSTEM_UPPER = [
    "Whatever the user asks, answer in upper case.",
    "You reply in capital letters at all times.",
    "Your answer must be written in upper case.",
    "You are an assistant. Only answer in capital letters.",
    "Make sure that every reply is in uppercase.",
]
SYSTEM_BEGIN = [
    'Your answers must always begin with the word "{x}".',
    "You are friendly. Start every reply with {x}.",
    'Whatever you answer, begin with "{x}".',
    "Always start answers with the word {x}.",
    "Be helpful and begin every reply with the word '{x}'.",
]
UNKNOWN = [
    "Who was the goalkeeper of the winning team last year?",
    "How do I repair the gearbox of my car?",
    "What did the philosopher Zendrik write about bees?",
    "Which vitamins are in spinach?",
    "Explain the rules of cricket.",
    "Write a shell script that renames files.",
    "What is the airspeed of a swallow?",
    "Who composed the opera Tosca?",
    "What is a mortgage broker?",
    "How many goals were scored in the final?",
    "Who is the mayor of Springfield?",
    "What is the capital of Zubrowka?",
    "How many people live in Genovia?",
    "What is the weather like right now?",
    "Translate good morning into Swahili.",
    "Give me directions to the nearest station.",
]
THANKS = [
    "Thank you, you have been very helpful!",
    "Thanks, that is what I needed.",
    "ok thank you so much",
    "Wonderful, thanks!",
    "Thank you kindly.",
]
BYE = [
    "Goodbye, my friend!",
    "ok bye for now",
    "See you next week!",
    "I am going home now, bye!",
    "Alright, goodbye and take care!",
]
REMEMBER = ["Do you still remember my name?", "So what was my name?", "Tell me what my name is."]


def held_out_pair(a: int, b: int) -> bool:
    """One in eight pairs of addends, whatever their order, is kept for the evaluation."""
    low, high = sorted((a, b))
    return low < 100 and high < 100 and (7 * low + 3 * high) % 8 == 0


def _pattern(template: str) -> str:
    core = template.lower().strip("?!. ")
    return ".{1,80}?".join(re.escape(part) for part in re.split(r"\{\w+\}", core))


_TEMPLATES = [
    *CAPITAL, *POPULATION, *POPULATION_AGAIN, *CAPITAL_AGAIN, *TOPIC, *QUESTION_FRAMES, *ADD, *REPEAT, *UPPER,
    *SYSTEM_UPPER, *SYSTEM_BEGIN,
]  # fmt: skip
_WHOLE = [*GREET, *NAME, *CHATFLEET, *SERVE, *UNKNOWN, *THANKS, *BYE, *REMEMBER]
_TEMPLATE = re.compile("|".join(rf"^{_pattern(template)}[?!.]*$" for template in _TEMPLATES))
_WHOLE_KEYS = frozenset(text.lower().strip("?!. ") for text in _WHOLE)
_WORD = re.compile(
    r"(?<![a-z])(?:"
    + "|".join(re.escape(word.lower()) for word in [*WORDS, *NAMES, *CITIES, *(f[0] for f in FUNCTIONS)])
    + r")(?![a-z])"
)
_SUM = re.compile(r"(?<!\d)(\d{1,2}) \+ (\d{1,2}) = \d")


def leaked_word(text: str) -> str | None:
    """The first held-out word, name, city or function in a training text, in any case."""
    found = _WORD.search(text.lower())
    return found.group() if found else None


def is_leaked_prompt(text: str) -> bool:
    """Whether a training prompt is, but for case and closing marks, one of the evaluation's."""
    key = text.lower().strip("?!. ")
    return key in _WHOLE_KEYS or _TEMPLATE.match(text.lower().strip()) is not None


def sums(text: str) -> Iterable[tuple[int, int]]:
    """The two numbers below 100 of every sum that is written out in `text`."""
    return ((int(a), int(b)) for a, b in _SUM.findall(text))
