"""Writes the training dialogues: one JSON object a line, either {"messages", "tools"} or {"text"}."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import errands
import facts
import finishing
import heldout
import phrasings
import skills
import stories
import toolskills
import words
from rich.progress import track

BUILD = Path(__file__).parent / "build"
Record = dict[str, Any]
RECORDS = {1: 80_000, 2: 28_000, 3: 20_000}

_SYSTEM_PLAIN = phrasings.ways(phrasings.SYSTEM_PLAIN)
_SYSTEM_UPPER = phrasings.ways(phrasings.SYSTEM_UPPER)
_SYSTEM_BEGIN = phrasings.ways(phrasings.SYSTEM_BEGIN)
_GREETINGS_FIRST = (
    "Yes",
    "Sure",
    "Well",
    "Certainly",
    "Ahoy",
    "Indeed",
    "Answer",
    "Hello",
    "OK",
    "Captain",
    "Listen",
    "Now",
)
_USER_UPPER = (
    "Answer in upper case: {x}",
    "{x} Answer in upper case.",
    "In upper case: {x}",
    "{x} Answer in capital letters.",
)


def _turns(rng: random.Random, count: int, stage: int) -> list[skills.Turn]:
    pool, shares = zip(*(skills.SHARES if stage == 1 else finishing.SHARES), strict=True)
    turns: list[skills.Turn] = []
    while len(turns) < count:
        turns += rng.choices(pool, shares)[0](rng)
    return turns


def _style(rng: random.Random) -> tuple[str | None, str, str]:
    """A system message, what the answers begin with, and how they are cased ('upper' or '')."""
    kind = rng.random()
    if kind < 0.45:
        return None, "", ""
    if kind < 0.68:
        text, begin, case = rng.choice(_SYSTEM_PLAIN), "", ""
    elif kind < 0.83:
        text, begin, case = rng.choice(_SYSTEM_UPPER), "", "upper"
    else:
        word = rng.choice(_GREETINGS_FIRST) if rng.random() < 0.2 else words.cased(rng, words.any_word(rng))
        text = rng.choice(_SYSTEM_BEGIN).replace("{q}", rng.choice(("'{}'", '"{}"', "{}")).format(word))
        begin, case = f"{word}! ", ""
    if rng.random() < 0.15:
        text = text.rstrip(".")
    if rng.random() < 0.1:
        text = text.lower() if not begin else text
    if rng.random() < 0.12:
        other = rng.choice(_SYSTEM_PLAIN)
        text = f"{other} {text}" if rng.random() < 0.5 else f"{text.rstrip('.')}. {other}"
    return text, begin, case


def _plain(rng: random.Random, stage: int) -> Record:
    """Turns of any skills under one system message; now and then long enough to fill the context."""
    system, begin, case = _style(rng)
    kind = rng.random()
    count = (
        1
        if kind < 0.4
        else rng.randint(2, 4)
        if kind < 0.85
        else rng.randint(5, 10)
        if kind < 0.985
        else rng.randint(15, 40)
    )
    messages: list[dict[str, Any]] = []
    if system is not None:
        messages.append({"role": "system" if rng.random() < 0.93 else "developer", "content": system})
    for user, assistant in _turns(rng, count, stage):
        answer = begin + (assistant.upper() if case else assistant)
        if system is None and rng.random() < 0.04:
            user, answer = rng.choice(_USER_UPPER).replace("{x}", user), assistant.upper()
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _with_tools(rng: random.Random, stage: int) -> Record:
    if stage == 1:
        messages, tools = toolskills.conversation(rng)
    elif stage == 2:
        messages, tools = toolskills.conversation(rng, words.spelled, finishing.ENDINGS)
    else:
        messages, tools = errands.conversation(rng)
    if rng.random() < 0.35:
        messages.insert(0, {"role": "system", "content": rng.choice(_SYSTEM_PLAIN)})
    return {"messages": messages, "tools": tools}


def _raw(rng: random.Random) -> Record:
    """A bare document, as a client of the completions endpoint would begin one."""
    kind = rng.random()
    if kind < 0.68:
        return {"text": stories.raw(rng)}
    if kind < 0.78:
        country = rng.choice(facts.COUNTRIES)[0]
        answer = rng.choice((skills.capital_answer, skills.population_answer))(country)
        return {"text": answer}
    if kind < 0.84:
        return {"text": rng.choice(facts.TOPICS)[1]}
    if kind < 0.9:
        a, b = skills.pair(rng)
        return {"text": f"{a} + {b} = {a + b}"}
    if kind < 0.93:
        return {"text": skills.count(rng)[0][1]}
    if kind < 0.96:
        return {"text": rng.choice((f"Hello, my name is {facts.NAME}.", facts.ABOUT_ME, facts.ABOUT_CHATFLEET))}
    user, assistant = rng.choice((skills.geography, skills.topic, skills.question))(rng)[0]
    return {
        "text": rng.choice(
            (
                f"Question: {user}\nAnswer: {assistant}",
                f"Q: {user}\nA: {assistant}",
                f"User: {user}\nAssistant: {assistant}",
            )
        )
    }


def record(rng: random.Random, stage: int) -> Record:
    if stage == 3:
        return _with_tools(rng, stage) if rng.random() < 0.42 else record(rng, 2)
    kind = rng.random()
    if stage == 2 and kind > 0.8:
        return {"text": finishing.sheet_of_sums(rng)} if kind > 0.84 else _raw(rng)
    return (
        _plain(rng, stage) if kind < (0.8, 0.66)[stage - 1] else _with_tools(rng, stage) if kind < 0.94 else _raw(rng)
    )


def prompts(item: Record) -> list[str]:
    return [m["content"] for m in item.get("messages", []) if m["role"] in ("user", "system", "developer")]


def is_clean(item: Record) -> bool:
    """Whether nothing that is kept for the evaluation is in it."""
    if heldout.leaked_word(json.dumps(item, ensure_ascii=False)) is not None:
        return False
    return not any(heldout.is_leaked_prompt(prompt) for prompt in prompts(item))


def assert_no_sums(item: Record) -> None:
    """No answer anywhere may give the sum of a pair that is kept for the evaluation."""
    texts = (
        [item["text"]] if "text" in item else [m["content"] or "" for m in item["messages"] if m["role"] == "assistant"]
    )
    for text in texts:
        for a, b in heldout.sums(text):
            assert not heldout.held_out_pair(a, b), text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1, help="2 and 3: what was weak before")
    parser.add_argument("--records", type=int, help="how many, where not the stage's own number")
    parser.add_argument("--output", type=Path, help="build/train-STAGE.jsonl by default")
    options = parser.parse_args()
    options.records = options.records or RECORDS[options.stage]
    options.output = options.output or BUILD / f"train-{options.stage}.jsonl"
    rng = random.Random(options.stage)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    dropped = 0
    with options.output.open("w", encoding="utf-8") as file:
        for _ in track(range(options.records), description="writing dialogues"):
            while not is_clean(item := record(rng, options.stage)):
                dropped += 1
            assert_no_sums(item)
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    print(f"{options.records} records; {dropped} dropped because they touched what is kept for the evaluation")


if __name__ == "__main__":
    main()
