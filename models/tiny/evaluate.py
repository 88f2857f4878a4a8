"""Scores the GGUF on held-out phrasings and words, a skill a row, and fails below the bar."""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import heldout
import numpy as np
import template
from export import ARTEFACT, BUILD
from rich.console import Console
from rich.progress import track
from rich.table import Table

SKILL_BAR, OVERALL_BAR = 0.8, 0.9
MAX_NEW_TOKENS = 260
Generate = Callable[[list[str]], list[str | None]]
"""Prompts to answers, greedily; None for an answer that did not end by itself."""


def openvino_engine(path: Path) -> Generate:
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = genai.ContinuousBatchingPipeline(str(path), scheduler, "CPU", {})
    tokenizer = pipeline.get_tokenizer()
    config = genai.GenerationConfig()
    config.max_new_tokens, config.do_sample = MAX_NEW_TOKENS, False
    config.eos_token_id = tokenizer.get_eos_token_id()
    config.stop_token_ids = {config.eos_token_id}

    def generate(prompts: list[str]) -> list[str | None]:
        answers: list[str | None] = []
        for begin in range(0, len(prompts), 32):
            inputs = [
                tokenizer.encode(text, add_special_tokens=False).input_ids for text in prompts[begin : begin + 32]
            ]
            for result in pipeline.generate([ov.Tensor(np.array(ids.data)) for ids in inputs], [config] * len(inputs)):
                ids = list(result.m_generation_ids[0])
                ended = len(ids) < MAX_NEW_TOKENS or ids[-1] == config.eos_token_id
                answers.append(tokenizer.decode(ids, skip_special_tokens=True) if ended else None)
        return answers

    return generate


def transformers_engine(path: Path) -> Generate:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    def generate(prompts: list[str]) -> list[str | None]:
        answers: list[str | None] = []
        for text in prompts:
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            with torch.inference_mode():
                out = model.generate(
                    ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, attention_mask=torch.ones_like(ids),
                    eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                )[0, ids.shape[1] :].tolist()  # fmt: skip
            answers.append(
                tokenizer.decode(out, skip_special_tokens=True) if out[-1] == tokenizer.eos_token_id else None
            )
        return answers

    return generate


class Conversation:
    """A case as it goes: the messages so far, and how each turn fared."""

    def __init__(self, case: cases.Case) -> None:
        self.case = case
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": case.system}] if case.system else []
        self.outcomes: list[tuple[str, str | None, bool]] = []

    def prompt(self, turn: cases.Turn) -> str:
        if self.case.raw:
            return turn.prompt
        if turn.results:
            self.messages += [{"role": "tool", "content": text} for text in turn.results]
        else:
            self.messages.append({"role": "user", "content": turn.prompt})
        return template.render(self.messages, self.case.tools, add_generation_prompt=True)

    def take(self, turn: cases.Turn, answer: str | None) -> None:
        checked = answer is not None and turn.check(turn.prompt + answer if self.case.raw else answer)
        self.outcomes.append((turn.prompt or " | ".join(turn.results), answer, checked))
        made = cases.parse_calls(answer or "")
        if made:
            named = [{"function": {"name": name, "arguments": arguments}} for name, arguments in made]
            self.messages.append({"role": "assistant", "content": None, "tool_calls": named})
        else:
            self.messages.append({"role": "assistant", "content": answer or ""})


def run(made: list[cases.Case], generate: Generate) -> list[Conversation]:
    """All conversations side by side, a turn at a time."""
    conversations = [Conversation(case) for case in made]
    for round_ in track(range(max(len(case.turns) for case in made)), description="evaluating"):
        going = [c for c in conversations if round_ < len(c.case.turns)]
        prompts = [c.prompt(c.case.turns[round_]) for c in going]
        for conversation, answer in zip(going, generate(prompts), strict=True):
            conversation.take(conversation.case.turns[round_], answer)
    return conversations


def scored(conversation: Conversation) -> list[tuple[str, str | None, bool]]:
    """The turns that count: every turn of a long talk, else the last, which is the one that tests the skill."""
    long = conversation.case.skill == "ten-turn conversations"
    return conversation.outcomes if long else conversation.outcomes[-1:]


# In these the system message, the words or the results are what training has not seen; their questions may be plain.
_PLAIN_QUESTIONS = ("system: upper case", "system: first word", "answers from the result", "ten-turn conversations")


def _key(text: str) -> str:
    return text.lower().strip("?!. ")


def assert_unseen(made: list[cases.Case], data: list[Path]) -> None:
    """Nothing held out is in the training data, where that is still there to be checked."""
    told = {  # plain requests that a user will make in these very words
        "once upon a time", "what is the capital of france"
    }  # fmt: skip
    asked = {
        _key(turn.prompt)
        for case in made
        if case.skill not in _PLAIN_QUESTIONS and not case.raw
        for turn in case.turns[-1:]
        if turn.prompt
    } - told
    for path in data:
        if not path.exists():
            Console(stderr=True).print(f"{path} is not there: the check against the training data is left out")
            continue
        with path.open(encoding="utf-8") as file:
            for line in file:
                assert heldout.leaked_word(line) is None, line
                for a, b in heldout.sums(line):
                    assert not heldout.held_out_pair(a, b), line
                for message in json.loads(line).get("messages", []):
                    if message["role"] in ("user", "system", "developer"):
                        assert not heldout.is_leaked_prompt(message["content"]), message["content"]
                        assert _key(message["content"]) not in asked, message["content"]


def table(results: dict[str, list[bool]]) -> str:
    rows = [f"| {skill} | {len(passed)} | {sum(passed) / len(passed):.0%} |" for skill, passed in results.items()]
    total = [value for passed in results.values() for value in passed]
    return "\n".join(
        [
            "| skill | cases | score |",
            "|---|---|---|",
            *rows,
            f"| **all** | {len(total)} | {sum(total) / len(total):.1%} |",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ARTEFACT)
    parser.add_argument("--engine", choices=("openvino", "transformers"), default="openvino")
    parser.add_argument("--data", type=Path, nargs="*", default=[BUILD / "train-1.jsonl", BUILD / "train-2.jsonl"])
    parser.add_argument("--failures", action="store_true", help="print every failed turn")
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    options = parser.parse_args()
    console = Console()
    made = cases.all_cases()
    assert_unseen(made, options.data)
    generate = (openvino_engine if options.engine == "openvino" else transformers_engine)(options.model)
    results: dict[str, list[bool]] = defaultdict(list)
    for conversation in run(made, generate):
        for prompt, answer, is_right in scored(conversation):
            results[conversation.case.skill].append(is_right)
            if options.failures and not is_right:
                console.print(
                    f"[{conversation.case.skill}] {prompt!r}\n    -> {answer!r}", markup=False, highlight=False
                )
    shown = Table("skill", "cases", "score")
    for skill, passed in results.items():
        shown.add_row(skill, str(len(passed)), f"{sum(passed) / len(passed):.0%}")
    console.print(shown)
    if options.markdown:
        options.markdown.write_text(table(results) + "\n", encoding="utf-8")
    total = [value for passed in results.values() for value in passed]
    overall = sum(total) / len(total)
    weak = [skill for skill, passed in results.items() if sum(passed) < SKILL_BAR * len(passed)]
    console.print(f"overall {overall:.1%}; below {SKILL_BAR:.0%}: {', '.join(weak) or 'none'}")
    sys.stdout.flush()
    sys.exit(1 if weak or overall < OVERALL_BAR else 0)


if __name__ == "__main__":
    main()
