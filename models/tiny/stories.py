"""Short stories from a small grammar: someone, somewhere, wants something, meets someone, and it ends well."""
# ruff: noqa: E501 - the tables read best in long rows

import random

import words

_HEROES = """a little fox;a small bear;a young girl;a young boy;an old man;an old woman;a brave knight;a tiny mouse;a clever rabbit;a shy owl;
a lonely dragon;a kind queen;a poor farmer;a curious cat;a lost puppy;a happy frog;a gray wolf;a small robot;a quiet giant;a funny monkey;
a baker;a sailor;a princess;a wise turtle;a hungry lion;a little bird;a good king;a lazy dog;a friendly ghost;a gentle whale"""
_PLACES = """in a dark forest;by the sea;on a high mountain;in a small village;near a blue lake;in an old castle;on a green hill;in a big city;
under a tall tree;beside a quiet river;on a little island;in a warm valley;at the edge of the desert;in a house of stone"""
_WISHES = """wanted to find a friend;wanted to see the stars;looked for a lost key;wished to learn to sing;wanted to cross the river;
dreamed of flying;looked for a golden apple;wanted to bake the best bread;wished to visit the moon;wanted to find the way home;
searched for a hidden treasure;wanted to see the snow;wished for a new hat;hoped to build a boat;wanted to plant a garden"""
_TROUBLES = """But a storm came and the night was cold;But the road was long and nobody would help;But a deep river was in the way;
But it was dark and the path was lost;But everyone laughed and said no;But the wind was strong and the rain fell hard;
But a great wall stood in the way;But there was nothing left to eat;But the days passed and nothing changed"""
_HELPERS = """a friendly bird;an old wizard;a kind stranger;a small green frog;a singing fish;a little bee;a white horse;a patient snail;
a young teacher;a silver mouse;a merry musician;a gentle deer"""
_HELPS = """showed the way;shared some bread;told a secret;gave good advice;lent a lamp;said not to give up;built a bridge;sang a song of hope;
offered to come along;knew just what to do"""
_TURNS = """Together they walked until the sun came up;They worked all day and all night;They laughed and tried again;
They went on, step by step;They crossed the hills and sang;They shared everything they had"""
_RESULTS = """At last the wish came true;In the end everything was well;And so the dream came true;In the morning the search was over;
Then the whole land was full of joy;Soon there was a great feast"""
_ENDS = """They lived happily ever after.;And they were friends for the rest of their days.;And from that day on nobody was lonely.;
And that is the end of the story.;And everyone slept well that night.;The end."""


def _pick(rng: random.Random, table: str) -> str:
    return rng.choice(table.split(";")).strip()


def _hero(rng: random.Random) -> str:
    if rng.random() < 0.3:
        noun = words.made_up(rng) if rng.random() < 0.3 else rng.choice(words.NOUNS)
        adjective = rng.choice(words.ADJECTIVES)
        return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective} {noun}"
    return _pick(rng, _HEROES)


def _the(someone: str) -> str:
    return "the " + someone.split(" ", 1)[1]


def text(rng: random.Random, hero: str | None = None) -> str:
    hero = hero or _hero(rng)
    name = words.title_name(rng)
    helper = _pick(rng, _HELPERS)
    the = _the(hero)
    parts = [
        f"Once upon a time{rng.choice((',', ''))} there was {hero} who lived {_pick(rng, _PLACES)}.",
        rng.choice((f"The name of {the} was {name}.", f"Everyone called {the} {name}.", "")),
        f"One day, {the} {_pick(rng, _WISHES)}.",
        f"{_pick(rng, _TROUBLES)}.",
        f"Then {the} met {helper}.",
        f"{_the(helper).capitalize()} {_pick(rng, _HELPS)}.",
        rng.choice((f"{_pick(rng, _TURNS)}.", f'"Thank you," said {the}.', "")),
        f"{_pick(rng, _RESULTS)}.",
        _pick(rng, _ENDS),
    ]
    return " ".join(part for part in parts if part)


_ASK = """tell me a story;tell a story;once upon a time;tell me a short story;write a story;write a short story;a story please;can you tell me a story;
I want to hear a story;continue: once upon a time;please tell me a story;read me a story;make up a story;once upon a time...;tell me a tale;
tell me a bedtime story;another story;do you know a story;continue the story: once upon a time;give me a story;story"""
_ASK_ABOUT = """tell me a story about {h};write a story about {h};a story about {h};write a short story about {h};
once upon a time there was {h};can you tell me a story about {h};tell a story about {h};please tell me a story about {h};story about {h}"""


def asked(rng: random.Random) -> tuple[str, str]:
    """A request and its story."""
    hero = None
    if rng.random() < 0.45:
        hero = _hero(rng)
        prompt = _pick(rng, _ASK_ABOUT).replace("{h}", hero)
    else:
        prompt = _pick(rng, _ASK)
    if rng.random() < 0.75:
        prompt = prompt[:1].upper() + prompt[1:]
    return prompt + rng.choice((".", "", "", "!")), text(rng, hero)


def asked_about(rng: random.Random, hero: str) -> tuple[str, str]:
    """A request for a story about the hero, and its story."""
    prompt = _pick(rng, _ASK_ABOUT).replace("{h}", hero)
    return prompt[:1].upper() + prompt[1:] + rng.choice((".", "", "!")), text(rng, hero)


def raw(rng: random.Random) -> str:
    """A story as a bare document."""
    return text(rng)
