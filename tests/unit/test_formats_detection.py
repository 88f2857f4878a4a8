"""Which format a chat template tells of, and what constrained decoding is told of it."""

from pathlib import Path

import pytest

from chatfleet.chat.formats import REASONING_FORMATS, TOOL_FORMATS, find_reasoning_format, find_tool_format

BUNDLED = Path(__file__).parents[2] / "models" / "tiny" / "chat_template.jinja"

# What stands in the templates of these models, as far as it tells them from others.
TEMPLATES = {
    "Qwen2.5": ("<|im_start|> <tools> <tool_call> </tool_call>", "hermes", None),
    "Qwen3": ("<|im_start|> <tools> <tool_call> '</think>' in content enable_thinking", "hermes", "qwen3"),
    "Qwen3-Coder": ("<|im_start|> <tool_call>\n<function=example_function_name>\n<parameter=x>", "qwen3_coder", None),
    "Hermes 3": ('<|im_start|> <tools> <tool_call>\n{"name": <function-name>', "hermes", None),
    "Llama 3.1": ('<|start_header_id|> <|python_tag|> {"name": "\', "parameters": ', "llama3_json", None),
    "Llama 3.2": ('<|start_header_id|> {"name": "\', "parameters": ', "llama3_json", None),
    "Llama 3.2, Python": ("<|start_header_id|> [func_name1(params_name1=params_value1", "pythonic", None),
    "Llama 4": ("<|header_start|> ipython <|python_start|>", "pythonic", None),
    "Mistral Small 3.1": ("[AVAILABLE_TOOLS] [TOOL_CALLS] [ [TOOL_RESULTS]", "mistral", None),
    "Mistral Small 3.2": ("[AVAILABLE_TOOLS] [TOOL_CALLS] [CALL_ID] [ARGS]", "mistral_v11", None),
    "Magistral": ("[TOOL_CALLS] [ARGS] [THINK] [/THINK]", "mistral_v11", "mistral"),
    "DeepSeek V3": ("<｜Assistant｜> <｜tool▁calls▁begin｜> '\\n' + '```json' + '\\n'", "deepseek_v3", None),
    "DeepSeek R1": (
        "<｜Assistant｜> <｜tool▁calls▁begin｜> ```json '</think>' in content",
        "deepseek_v3",
        "deepseek_r1",
    ),
    "DeepSeek V3.1": ("<｜Assistant｜> </think> <｜tool▁calls▁begin｜> <｜tool▁sep｜>", "deepseek_v31", "deepseek_r1"),
    "R1-Distill": ("<｜Assistant｜><think>\\n", None, "deepseek_r1"),
    "Granite 3.3": ("<|start_of_role|> <|tool_call|> <think></think> <response></response>", "granite", "granite"),
    "Granite 3.2": ("<|start_of_role|> <|tool_call|> Here is my thought process:", "granite", "granite"),
    "Granite 4": ("<|start_of_role|> <tools> <tool_call> </tool_call>", "hermes", None),
    "Phi-4-mini": ("<|tool|>' + message['tools'] + '<|/tool|>", "phi4_mini_json", None),
    "GLM-4.5": ("[gMASK]<sop> <tool_call>{function-name} <arg_key> <arg_value> <think></think>", "glm45", "glm45"),
    "Kimi K2": ("<|im_system|>tool_declare<|im_middle|>", "kimi_k2", None),
    "Kimi K2 Thinking": ("<|im_middle|> <|tool_calls_section_begin|> <think></think>", "kimi_k2", "kimi_k2"),
    "gpt-oss": ("<|start|>assistant<|channel|>analysis<|message|>", "openai", "openai_gptoss"),
    "Seed-OSS": ("<seed:bos> <seed:think> </seed:think>", None, "seed_oss"),
    "ChatML": ("<|im_start|> <|im_end|>", None, None),
}


@pytest.mark.parametrize("model", TEMPLATES)
def test_finds_the_formats_from_the_template(model: str) -> None:
    template, tools, reasoning = TEMPLATES[model]
    assert getattr(find_tool_format(template), "name", None) == tools
    assert getattr(find_reasoning_format(template), "name", None) == reasoning


def test_the_bundled_model_writes_calls_as_hermes_and_does_not_reason() -> None:
    template = BUNDLED.read_text()
    assert find_tool_format(template) is TOOL_FORMATS["hermes"]
    assert find_reasoning_format(template) is None


@pytest.mark.parametrize(
    ("name", "continued", "opened"),
    [
        ("qwen3", "<think>\nI should", True),
        ("qwen3", "<think>a</think> and the <think> tag", False),
        ("qwen3", "The tag <think> marks", False),
        ("openai_gptoss", "<|channel|>analysis<|message|>We", True),
        ("openai_gptoss", "<|channel|>analysis<|message|>We<|end|>", False),
    ],
)
def test_knows_whether_the_answer_that_goes_on_is_in_its_reasoning(name: str, continued: str, opened: bool) -> None:
    assert REASONING_FORMATS[name].opens_reasoning(f"prompt {continued}", continued=continued) is opened


@pytest.mark.parametrize(
    ("name", "prompt", "opened"),
    [
        ("deepseek_r1", "<｜User｜>Hi<｜Assistant｜><think>\n", True),
        ("deepseek_r1", "<｜User｜>Hi<｜Assistant｜>", False),
        ("qwen3", "<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("qwen3", "<|im_start|>user\nwhat is <think><|im_end|>\n<|im_start|>assistant\n", False),
        ("openai_gptoss", "<|start|>assistant", False),
        ("openai_gptoss", "<|start|>assistant<|channel|>analysis<|message|>", True),
    ],
)
def test_knows_whether_the_prompt_has_begun_the_reasoning(name: str, prompt: str, opened: bool) -> None:
    assert REASONING_FORMATS[name].opens_reasoning(prompt) is opened


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_begin_with_their_trigger(name: str) -> None:
    shape = TOOL_FORMATS[name].shape
    assert shape.trigger and (shape.begin + shape.before_name).startswith(shape.trigger)
