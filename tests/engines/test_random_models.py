"""The benchmark's random model is the same whether it is a GGUF file or a safetensors folder."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatfleet.chat.gguf import read_gguf
from engines.openvino_models import TINY, writer

TEXT = "User: how many ships, 12 or 7?\n\n<|im_end|> it's <|im_start|>"
CONVERSATION = [{"role": "user", "content": "where are the ships?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = writer.write_safetensors(tmp_path_factory.mktemp("folder") / "tiny", TINY, dtype="float32")
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = writer.write_model(tmp_path_factory.mktemp("file") / "tiny.gguf", TINY, dtype=GGMLQuantizationType.F32)
    return path


@torch.no_grad()
@pytest.mark.long
def test_greedy_tokens_of_the_folder_are_those_of_the_file(folder: Path, file: Path) -> None:
    prompt = torch.tensor([[5, 9, 100, 42, 17, 300]])
    said = [
        AutoModelForCausalLM.from_pretrained(*where, dtype=torch.float32, **more).generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, eos_token_id=None
        )
        for where, more in (((folder,), {}), ((file.parent,), {"gguf_file": file.name}))
    ]
    assert said[0].shape == (1, 38)
    assert said[0].tolist() == said[1].tolist()
    assert len(set(said[0][0].tolist())) > 8  # a model that repeats itself would prove little


def test_the_folder_has_the_dtype_that_it_was_written_in(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(writer.write_safetensors(tmp_path / "tiny", TINY), dtype="auto")
    assert {weights.dtype for weights in model.parameters()} == {torch.bfloat16}


def test_both_make_the_same_tokens_of_a_text(folder: Path, file: Path) -> None:
    of_folder = AutoTokenizer.from_pretrained(folder)
    of_file = read_gguf(file).tokenizer()
    token_ids = of_folder.encode(TEXT, add_special_tokens=False)
    assert token_ids == of_file.encode(TEXT, add_special_tokens=False)
    assert of_folder.decode(token_ids) == TEXT
    assert of_folder.eos_token_id in of_file.eos_token_ids


def test_both_have_the_same_chat_template(folder: Path, file: Path) -> None:
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        CONVERSATION, tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nwhere are the ships?<|im_end|>\n<|im_start|>assistant\n"
    assert read_gguf(file).chat_template == writer.CHAT_TEMPLATE
