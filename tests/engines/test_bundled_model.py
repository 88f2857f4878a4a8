"""The bundled model: one file that two libraries load alike, and that answers as its card says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.template import ChatTemplate
from chatfleet.chat.text import decode
from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams
from chatfleet.worker.model_source import bundled_model_path

ROOT = Path(__file__).parents[2]
QUESTIONS = ["Hello!", "What is the capital of France?", "What is 17 + 25?", "SAY IT IN UPPER CASE: grüße 🚢"]


def prompts() -> list[list[int]]:
    metadata = read_gguf(bundled_model_path())
    assert metadata.chat_template is not None
    template = ChatTemplate(metadata.chat_template)
    texts = [template.render([{"role": "user", "content": question}]) for question in QUESTIONS]
    tokenizer = metadata.tokenizer()
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def test_it_is_as_small_as_promised() -> None:
    assert bundled_model_path().stat().st_size <= 25_000_000


@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.long
def test_transformers_loads_the_same_tokenizer_and_model() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chatfleet.engines.openvino.backend import OpenVINOBackend

    path = bundled_model_path()
    theirs = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 12_000_000
    assert model.config.max_position_embeddings >= 1024
    backend = OpenVINOBackend(EngineConfig(engine="openvino", model_path=str(path), deterministic=True))
    ours = read_gguf(path).tokenizer()
    stop = tuple(ours.eos_token_ids)
    for number, (question, prompt) in enumerate(zip(QUESTIONS, prompts(), strict=True)):
        rendered = theirs.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        assert list(rendered) == prompt
        sampling = SamplingParams(max_tokens=40, temperature=0.0, stop_token_ids=stop)
        backend.add(GenerateRequest(request_id=number, prompt_token_ids=prompt, sampling=sampling))
        token_ids: list[int] = []
        while backend.next_step_s() is not None:
            for delta in backend.step():
                assert delta.fault is None
                token_ids += delta.token_ids
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=list(stop), pad_token_id=0
        )
        assert token_ids == expected[0, len(prompt) :].tolist()
        assert decode(ours, token_ids)
    backend.close()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_evaluation_passes_and_the_card_has_every_skill(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    command = [sys.executable, str(ROOT / "models" / "tiny" / "evaluate.py"), "--markdown", str(table)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert said.returncode == 0, said.stdout + said.stderr
    card = (ROOT / "models" / "tiny" / "README.md").read_text(encoding="utf-8")
    skills = [line.split("|")[1] for line in table.read_text(encoding="utf-8").splitlines()[2:]]
    assert len(skills) > 20
    assert all(f"|{skill}|" in card for skill in skills)


def test_a_template_renders_tools_and_results_as_json() -> None:
    template = ChatTemplate(read_gguf(bundled_model_path()).chat_template or "")
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    prompt = template.render(
        [
            {"role": "user", "content": "go"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": "y"}}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ],
        tools=tools,
    )
    assert json.dumps(tools[0]) in prompt
    assert '<tool_call>\n{"name": "f", "arguments": {"x": "y"}}\n</tool_call>' in prompt
    assert "done" in prompt
