"""An OpenVINO IR folder, as optimum-cli writes it, served by the worker."""

import json
from pathlib import Path

import gguf
import pytest
from transformers import AutoTokenizer

from chatfleet.chat.gguf import read_gguf
from chatfleet.engines.openvino.conversion import convert_gguf
from chatfleet.worker.model_source import bundled_model_path
from support.processes import WorkerProcess

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' own


def field(reader: gguf.GGUFReader, name: str) -> int:
    value = reader.fields[name].contents()
    assert isinstance(value, int)
    return value


@pytest.fixture(scope="module")
def ir_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as an IR folder with its tokenizer.json, template and configs."""
    folder = tmp_path_factory.mktemp("models") / "tiny-ir"
    folder.mkdir()
    source = bundled_model_path()
    convert_gguf(source, folder)
    metadata, reader = read_gguf(source), gguf.GGUFReader(str(source))
    architecture = reader.fields["general.architecture"].contents()
    keys = {
        "hidden_size": "embedding_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "num_key_value_heads": "attention.head_count_kv",
        "intermediate_size": "feed_forward_length",
        "max_position_embeddings": "context_length",
    }
    config = {name: field(reader, f"{architecture}.{key}") for name, key in keys.items()}
    ours = metadata.tokenizer()
    config["vocab_size"] = ours.vocab_size
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(ours.eos_token_ids)}))
    AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(str(folder))
    return folder


def test_it_is_served_with_its_own_tokenizer_and_template(ir_folder: Path) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    with WorkerProcess(str(ir_folder), "--model-name", "ir") as worker, worker.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "ir", "messages": question, "temperature": 0})
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        embedded = http.post("/v1/embeddings", json={"input": "hello"})
        assert embedded.json()["data"][0]["embedding"]


def test_a_folder_without_a_tokenizer_says_what_to_do(ir_folder: Path) -> None:
    hidden = ir_folder / "tokenizer.json"
    kept = hidden.rename(ir_folder / "kept")
    try:
        with pytest.raises(AssertionError, match=r"Error: .*has no tokenizer.json"):
            WorkerProcess(str(ir_folder))
    finally:
        kept.rename(hidden)
