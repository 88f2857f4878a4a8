"""Words and phrases for copying, unknown topics and stories. Made-up words teach copying of any spelling."""
# ruff: noqa: SIM905 - word lists read best as running text

import random

NOUNS = """apple arrow autumn bakery balloon banner basket beach bell bicycle bird blanket boat book bottle branch
bridge broom bucket butter button cabin cake camera candle canyon carpet castle chair cheese cherry circle city cloud
clock coat coin corner cotton cousin crown cup curtain daisy dance desert desk diamond dinner doctor door
dragon dream drum eagle engine evening farmer feather field finger fire flag flame flower forest fountain
friend frog garden gate ghost giant glass glove grape guitar hammer harbor hat hill horse hospital hotel house
island jacket jewel journey juice kettle key kitchen kite ladder lake lamp leaf lemon letter library lion
machine magnet map market meadow melody mirror monkey morning mouse museum needle nest notebook number onion
orange orchard painter paper parrot path pencil pepper picture pillow pirate planet pocket pond potato prince
puzzle queen rabbit radio ribbon river road rocket roof rope sailor salad salt sandwich school secret shadow
sheep ship shirt silver singer snow soldier song soup spoon spring square squirrel stone storm street sugar
summer table teacher temple thunder tiger timber tower train travel treasure uncle valley village violin wagon
wall water wheel whistle window winter wizard wolf wood world yard zebra""".split()
ADJECTIVES = """amber ancient bitter blue bold brave bright broken calm careful clean clever cold curious dark deep dry
early easy empty fair fast fine fresh funny gentle golden good green happy heavy hidden honest hot huge hungry kind
large lazy light little long loud lucky modern narrow new noisy old orange pale pink plain polite poor pretty proud
purple quick quiet rare red rich round rough sad safe sharp short shy silent silver simple slow small smooth soft sour
strange strong sunny sweet tall thin tiny tired warm weak wet white wide wild wise wooden yellow young""".split()
VERBS = """carry catch chase choose climb collect cook count cross draw drink drive eat find fix fly follow give help
hide hold jump keep kick learn leave lift listen look make meet move open paint plant play pull push read ride ring
run sell send shake share show sing sit sleep smile speak stand start stop swim take talk teach throw touch turn
visit wait walk wash watch wear win write""".split()
SMALL = "the a my your our this that and or in on at to of with for is was are I you we they not no yes very so".split()
NAMES = """Adam Alice Amir Ana Ben Carla Carlos Chen Clara Daniel Diana Elena Emma Erik Eva Fatima Felix Grace Hana
Henry Ivan Jack Jane John Julia Karim Kate Laura Leo Lily Lucas Luis Maria Mark Mary Mia Michael Mina Nina Noah Olga
Omar Oscar Paul Peter Rosa Sam Sara Sofia Tom Vera Victor Yuki Bob Alex Max Tim Jim Anna Lisa Kim""".split()
CITIES = """Paris London Berlin Madrid Rome Vienna Tokyo Oslo Dublin Lisbon Cairo Delhi Mumbai Sydney Boston Chicago
Toronto Seattle Houston Munich Milan Lyon Porto Zurich Geneva Prague Warsaw Athens Istanbul Dubai Singapore Seoul
Shanghai Bangkok Jakarta Lagos Nairobi Lima Bogota Santiago Havana Denver Miami Dallas Austin Hamburg Naples Seville
Amsterdam Stockholm Helsinki Copenhagen Brussels Budapest Moscow Beijing Manila Hanoi""".split() + [
    "New York", "San Francisco", "Los Angeles", "Buenos Aires", "Rio de Janeiro", "Mexico City", "Cape Town",
    "Hong Kong", "New Delhi", "Kuala Lumpur",
]  # fmt: skip
# Things that people ask about and that it does not know.
UNKNOWN_TOPICS = """quantum computing|blockchain|bitcoin|relativity|thermodynamics|the stock market|rugby|tennis|
basketball|jazz|opera|ballet|poetry|sculpture|cubism|capitalism|socialism|feudalism|the French Revolution|
the Roman Empire|
the Cold War|a contract|a mortgage|a tariff|insurance|a dividend|marketing|accounting|a hedge fund|a sonnet|a haiku|
a verb|grammar|linguistics|astrology|yoga|meditation|karate|a marathon|a bicycle|an airplane|a submarine|a helicopter|
a telescope|a microscope|radar|sonar|plastic|steel|concrete|glass|copper|uranium|helium|nitrogen|carbon|a diamond|
a fossil|a dinosaur|a shark|an octopus|a penguin|a kangaroo|an elephant|a spider|an ant|a snake|a frog|a mushroom|
a cactus|a potato|a tomato|cheese|chocolate|wine|beer|sushi|pasta|pizza|curry|a compiler|a debugger|Rust|Java|Haskell|
JavaScript|Kubernetes|Docker|Redis|Kafka|Windows|a firewall|a router|a cookie|phishing|a hologram|nanotechnology|
a laser|a magnet|a battery|a turbine|an enzyme|a protein|a neuron|a hormone|cholesterol|diabetes|malaria|asthma|
a tornado|a glacier|a desert|a delta|an island|a comet|an asteroid|a supernova|dark matter|a quark|entropy|a matrix|
a derivative|an integral|topology|a fractal|statistics|probability|a logarithm|ethics|stoicism|Buddhism|karma|
a constitution|a senate|a monarchy|federalism|GDP|unemployment|a recession|supply and demand|game theory""".replace(
    "\n", ""
).split("|")

_ONSETS = """b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p ph pl pr qu r s sc sh sk sl sm sn sp st str
sw t th tr tw v w wh y z""".split()
_VOWELS = "a e i o u a e i o u ai au ea ee ei ia ie io oa oo ou ue y".split()
_ENDS = [""] * 3
_ENDS += "b ck d f g k l ll m n nd ng nk nt p r rd rk rm rn rt s sh ss st t th w x z ct ft lt mp".split()


def made_up(rng: random.Random) -> str:
    """A word of one to three syllables that almost surely does not exist."""
    count = rng.choice((1, 1, 2, 2, 2, 3))
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_ENDS) for _ in range(count))


def spelled(rng: random.Random) -> str:
    """A word that takes turns of any consonants and vowels, so that no pair of letters is new."""
    letters, vowel = "", rng.random() < 0.3
    for _ in range(rng.choice((2, 3, 4, 4, 5, 5, 6))):
        pool = "aaeeeiioouuy" if vowel else "bcdfghjklmnpqrstvwxzbcdfghlmnprst"
        letters += "".join(rng.choice(pool) for _ in range(rng.choice((1, 1, 1, 2))))
        vowel = not vowel
    return letters


def mashed(rng: random.Random) -> str:
    """The start of one real word and the end of another, so that every common piece is copied often."""
    first, second = rng.choice(NOUNS + ADJECTIVES + VERBS), rng.choice(NOUNS + ADJECTIVES + VERBS)
    return first[: rng.randint(1, len(first))] + second[rng.randint(0, len(second) - 1) :]


def any_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.35:
        return made_up(rng)
    if kind < 0.55:
        return mashed(rng)
    return rng.choice(rng.choice((NOUNS, ADJECTIVES, VERBS, SMALL, NOUNS)))


def cased(rng: random.Random, text: str) -> str:
    kind = rng.random()
    if kind < 0.6:
        return text
    if kind < 0.75:
        return text.title() if kind < 0.68 else text[:1].upper() + text[1:]
    if kind < 0.87:
        return text.upper()
    return " ".join(rng.choice((word, word.upper(), word.title())) for word in text.split(" "))


def _odd(rng: random.Random) -> str:
    """Numbers, addresses and letters from other alphabets: every byte is copied now and then."""
    kind = rng.randrange(6)
    if kind == 0:
        return str(rng.randrange(10 ** rng.randint(1, 8)))
    if kind == 1:
        return f"{made_up(rng)}@{made_up(rng)}.{rng.choice(('com', 'org', 'net'))}"
    if kind == 2:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") for _ in range(8))
    if kind == 3:
        return f"{made_up(rng)}{rng.choice(('_', '-', '/', '.', ':'))}{made_up(rng)}"
    if kind == 4:
        return "".join(chr(rng.choice((0xE0, 0x3B1, 0x430, 0x4E00, 0x3042)) + rng.randrange(24)) for _ in range(4))
    return rng.choice("!?#$%&*+=<>") * rng.randint(1, 3)


def phrase(rng: random.Random, most: int = 6, *, plain: bool = False) -> str:
    """One to `most` words, sometimes with marks, digits or capitals; only words and capitals when `plain`."""
    count = min(rng.choice((1, 1, 2, 2, 2, 3, 3, 4, 5, 6)), most)
    words = [any_word(rng) if plain or rng.random() > 0.06 else _odd(rng) for _ in range(count)]
    text = cased(rng, " ".join(words))
    if not plain and rng.random() < 0.12:
        text += rng.choice(("!", ".", "?", "..."))
    if not plain and count > 2 and rng.random() < 0.1:
        text = text.replace(" ", ", ", 1)
    return text


def title_name(rng: random.Random) -> str:
    """A proper name, real or made up."""
    return made_up(rng).title() if rng.random() < 0.5 else rng.choice(NAMES)


def place(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(CITIES)
    name = made_up(rng).title()
    return f"{rng.choice(('New', 'San', 'Port', 'Saint', 'North', 'East'))} {name}" if rng.random() < 0.15 else name
