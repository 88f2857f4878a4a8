"""Folders as Hugging Face lays them out."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models

from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.hub import Repository, choose_form
from chatfleet.worker.model_folder import (
    architecture,
    check_whole,
    has_pickles_only,
    has_safetensors,
    read_text_files,
)
from chatfleet.worker.tokenizer_files import Tokenizers

WEIGHTS = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RustTokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"architectures": ["Qwen2ForCausalLM"], "eos_token_id": 0})
    return tmp_path


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_what_a_list_of_files_is() -> None:
    assert has_safetensors(WEIGHTS)
    assert not has_safetensors(["model.safetensors"]), "no config.json"
    assert not has_safetensors(["config.json", "onnx/model.safetensors"])
    assert not has_safetensors(["config.json", "adapter_model.safetensors"]), "a LoRA adapter is no model"
    assert has_pickles_only(["config.json", "pytorch_model.bin"])
    assert not has_pickles_only(["config.json", "pytorch_model.bin", "model.safetensors"])
    assert not has_pickles_only(["config.json", "training_args.bin"])


@pytest.mark.parametrize(
    ("names", "order", "form"),
    [
        (["openvino_model.xml", "m.gguf", *WEIGHTS], ("ir", "gguf", "safetensors"), "ir"),
        (["m.gguf", *WEIGHTS], ("ir", "gguf", "safetensors"), "gguf"),
        (["m.gguf", *WEIGHTS], ("safetensors", "gguf", "ir"), "safetensors"),
        (WEIGHTS, ("ir", "gguf", "safetensors"), "safetensors"),
    ],
)
def test_the_first_form_that_is_there_is_taken(names: list[str], order: tuple[str, ...], form: str) -> None:
    assert choose_form(Repository("org/m", None, "c", tuple(names)), order) == form


@pytest.mark.parametrize(
    ("names", "order", "words"),
    [
        (["README.md"], ("ir", "gguf", "safetensors"), "neither openvino_model.xml nor a GGUF"),
        (["config.json", "pytorch_model.bin"], ("safetensors",), "run any code.*safetensors"),
        (WEIGHTS, ("gguf",), "--quantization"),
    ],
)
def test_a_repository_that_has_none_says_why(names: list[str], order: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        choose_form(Repository("org/m", None, "c", tuple(names)), order)


def test_a_template_is_looked_for_where_transformers_looks(folder: Path) -> None:
    def template() -> str | None:
        return read_text_files(folder, folder / "tokenizer.json").template

    assert template() is None
    write(folder, "tokenizer_config.json", {"chat_template": "config", "eos_token": {"content": "</s>"}})
    assert template() == "config"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}]
    write(folder, "tokenizer_config.json", {"chat_template": named, "eos_token": {"content": "</s>"}})
    assert template() == "default"
    write(folder, "chat_template.json", {"chat_template": "json"})
    assert template() == "json"
    (folder / "chat_template.jinja").write_text("jinja")
    assert template() == "jinja"
    assert read_text_files(folder, folder / "tokenizer.json").variables["eos_token"] == "</s>"


def test_answers_end_where_the_generation_config_says_else_the_config(folder: Path) -> None:
    def ends() -> frozenset[int]:
        return read_text_files(folder, folder / "tokenizer.json").tokenizer.eos_token_ids

    assert ends() == {0}
    write(folder, "generation_config.json", {"eos_token_id": [0, 1]})
    assert ends() == {0, 1}
    write(folder, "generation_config.json", {"temperature": 0.7})
    assert ends() == {0}
    write(folder, "config.json", {"text_config": {"eos_token_id": 1}})
    assert ends() == {1}


def test_a_missing_part_of_the_weights_is_named(folder: Path) -> None:
    check_whole(folder)
    write(folder, "model.safetensors.index.json", {"weight_map": {"x": WEIGHTS[1], "y": WEIGHTS[2]}})
    (folder / WEIGHTS[1]).touch()
    with pytest.raises(ConfigurationError, match=f"1 of 2 .* such as {WEIGHTS[2]}"):
        check_whole(folder)
    (folder / WEIGHTS[2]).touch()
    check_whole(folder)


def test_the_architecture_is_what_the_config_says(folder: Path) -> None:
    assert architecture(folder) == "Qwen2ForCausalLM"
    write(folder, "config.json", {"model_type": "qwen2"})
    assert architecture(folder) == "qwen2"
    (folder / "config.json").write_text("{bad")
    with pytest.raises(ConfigurationError, match="not valid JSON"):
        architecture(folder)


def test_a_tokenizer_of_another_kind_says_what_would_make_one_of_ours(tmp_path: Path) -> None:
    without_transformers = Tokenizers(tmp_path / "cache", can_make=False)
    with pytest.raises(ConfigurationError, match=r"no tokenizer.json. Copy it there"):
        without_transformers.for_folder(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ConfigurationError, match=r"but tokenizer.model.*pip install 'chatfleet\[transformers\]'"):
        without_transformers.for_folder(tmp_path)
