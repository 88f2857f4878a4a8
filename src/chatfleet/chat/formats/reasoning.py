"""How models write their reasoning."""

from dataclasses import dataclass

from chatfleet.chat.formats import harmony


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning between two texts, at the beginning of an answer. Names are those of vLLM's --reasoning-parser."""

    name: str
    start: str
    end: str
    marks: tuple[tuple[str, ...], ...]
    """Of what is found in the chat templates of such models: each of one of these."""
    other_starts: tuple[str, ...] = ()
    other_ends: tuple[str, ...] = ()
    answer_start: str = ""
    """What the model writes behind `end`, before the answer itself."""
    answer_tags: tuple[str, str] = ("", "")
    """Tags that may stand around the answer and mean nothing."""
    controls: tuple[str, ...] = ()

    @property
    def visible(self) -> tuple[str, ...]:
        """The texts that the parser needs to see, also where they are control tokens."""
        return self.controls or (self.start, self.end)

    @property
    def starts(self) -> tuple[str, ...]:
        return (self.start, *self.other_starts)

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.end, *self.other_ends)

    def matches(self, template: str) -> bool:
        """Whether a chat template (its source) is one of such a model."""
        return any(all(mark in template for mark in marks) for marks in self.marks)

    def opens_reasoning(self, rendered_prompt: str, *, continued: str = "") -> bool:
        """Whether the prompt's end has begun the reasoning, so that the answer goes on inside of it. `continued` is the
        text of the answer that the prompt ends with."""
        if rendered_prompt.rstrip().endswith(self.starts):
            return True
        begun = continued.lstrip()
        start = next((start for start in self.starts if begun.startswith(start)), None)
        return start is not None and not any(end in begun[len(start) :] for end in self.ends)


def _think(name: str, *marks: tuple[str, ...]) -> ReasoningFormat:
    return ReasoningFormat(name, "<think>", "</think>", marks)


_FORMATS = (
    ReasoningFormat(
        "openai_gptoss",
        f"{harmony.CHANNEL}analysis{harmony.MESSAGE}",
        f"{harmony.END}{harmony.START}assistant",
        ((harmony.CHANNEL, harmony.MESSAGE),),
        other_ends=(harmony.END, harmony.RETURN, harmony.CALL, harmony.START, harmony.CHANNEL),
        answer_start=f"{harmony.CHANNEL}final{harmony.MESSAGE}",
        controls=harmony.VISIBLE,
    ),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]", (("[THINK]",),)),
    ReasoningFormat("seed_oss", "<seed:think>", "</seed:think>", (("<seed:think>",), ("</seed:think>",))),
    ReasoningFormat(
        "granite",
        "<think>",
        "</think>",
        (("<|start_of_role|>", "<think>"), ("<|start_of_role|>", "Here is my thought process:")),
        other_starts=("Here is my thought process:", "Here's my thought process:"),
        other_ends=("Here is my response:", "Here's my response:"),
        answer_tags=("<response>", "</response>"),
    ),
    _think("glm45", ("[gMASK]<sop>", "</think>")),
    _think("kimi_k2", ("<|im_middle|>", "</think>")),
    _think("qwen3", ("<|im_start|>", "</think>"), ("<|im_start|>", "<think>")),
    _think("deepseek_r1", ("</think>",), ("<think>",)),
)

REASONING_FORMATS = {known.name: known for known in _FORMATS}


def find_reasoning_format(template: str) -> ReasoningFormat | None:
    """The format that a chat template's source tells of; None where its model is not known to reason."""
    return next((known for known in _FORMATS if known.matches(template)), None)
