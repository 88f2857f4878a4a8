"""Models as safetensors, from a folder and from a hub: what is fetched, what runs them, what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.tokenizer import Tokenizer, load_tokenizer_json
from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.model_source import bundled_model_path
from chatfleet.worker.tokenizer_files import Tokenizers
from support.command import refused, run
from support.fake_hub import fake_hub
from support.models import write_safetensors
from support.processes import WorkerProcess
from support.suites import quick
from support.wire import PATIENCE_S, user

QUESTION = {"messages": user("What is the capital of France?"), "temperature": 0}


@pytest.fixture(scope="module")
def safetensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safetensors(tmp_path_factory.mktemp("models") / "tiny")


def hub_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def answer(worker: WorkerProcess) -> str:
    with worker.http() as http:
        response = http.post("/v1/chat/completions", json=QUESTION, timeout=PATIENCE_S)
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def environment(url: str, folder: Path, **more: str) -> dict[str, str]:
    home = {"HF_HOME": str(folder / "hub"), "CHATFLEET_CACHE": str(folder / "cache")}
    return {"HF_ENDPOINT": url, "HF_HUB_DISABLE_TELEMETRY": "1", "CUDA_VISIBLE_DEVICES": "", **home, **more}


def test_a_folder_with_safetensors_is_run_by_transformers_and_it_says_why(safetensors: Path, tmp_path: Path) -> None:
    with WorkerProcess(str(safetensors), env=environment("", tmp_path), ready_s=PATIENCE_S) as worker:
        assert "Paris" in answer(worker)
        assert "engine transformers: safetensors of Qwen2ForCausalLM, on CPU" in worker.output
    assert not (tmp_path / "cache").exists(), "nothing was converted"


@pytest.mark.long
def test_of_a_repository_only_what_is_needed_is_fetched_and_it_is_served_again_offline(
    safetensors: Path, tmp_path: Path
) -> None:
    others = dict.fromkeys(
        ("modeling.py", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors"), b"x"
    )
    with fake_hub({"org/tiny": hub_files(safetensors) | others}) as url:
        with WorkerProcess("org/tiny", env=environment(url, tmp_path), ready_s=PATIENCE_S) as worker:
            assert "Paris" in answer(worker)
        fetched = {path.name for path in (tmp_path / "hub").rglob("*")}
        assert "model.safetensors" in fetched
        assert not fetched & {"modeling.py", "pytorch_model.bin", "consolidated.safetensors", "onnx"}
    offline = environment("http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")
    with WorkerProcess("org/tiny", env=offline, ready_s=PATIENCE_S) as worker:
        assert "Paris" in answer(worker)


def test_weights_that_may_run_code_are_refused(tmp_path: Path) -> None:
    with fake_hub({"org/old": {"config.json": b"{}", "pytorch_model.bin": b"x"}}) as url:
        finished = run("worker", "org/old", env=environment(url, tmp_path))
    refused(finished, "org/old", ".bin", "run any code", "safetensors")
    assert not list((tmp_path / "hub").rglob("*.bin"))
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).touch()
    refused(run("worker", str(folder)), "run any code", "safetensors")


def test_a_folder_that_lacks_a_part_of_its_weights_says_which(safetensors: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    folder.mkdir()
    for name, content in hub_files(safetensors).items():
        (folder / name).write_bytes(content)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2-of-2.safetensors"}}')
    refused(run("worker", str(folder)), "not whole", "model-2-of-2.safetensors")


TEXT = "<|im_start|>user\nWhat's 12345 + \u00fcn\u00efc\u00f6d\u00e9?<|im_end|>\n"


def token_ids(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(TEXT, add_special_tokens=True)


def test_a_tokenizer_that_is_not_ours_is_made_one_by_transformers_once(safetensors: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vocab"
    shutil.copytree(safetensors, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    added = {str(token.pop("id")): token for token in content["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added})
    )
    expected = load_tokenizer_json(safetensors / "tokenizer.json", eos_token_ids=[])
    tokenizers = Tokenizers(tmp_path / "cache", can_make=True)
    made = tokenizers.for_folder(folder)
    assert token_ids(load_tokenizer_json(made, eos_token_ids=[])) == token_ids(expected)
    written = made.stat().st_mtime_ns
    assert tokenizers.for_folder(folder) == made and made.stat().st_mtime_ns == written


def test_a_tokenizer_in_a_gguf_file_can_be_read_by_transformers(tmp_path: Path) -> None:
    metadata = read_gguf(bundled_model_path())
    made = Tokenizers(tmp_path / "cache", can_make=True).for_gguf(metadata)
    assert token_ids(load_tokenizer_json(made, eos_token_ids=[])) == token_ids(metadata.tokenizer())


@pytest.mark.long
def test_a_tokenizer_that_cannot_be_made_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ConfigurationError, match=r"tokenizer\.model, and transformers could not make one"):
        Tokenizers(tmp_path / "cache", can_make=True).for_folder(tmp_path)
    assert not list((tmp_path / "cache").rglob("tokenizer.json"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    quick(
        2,
        [
            (("--lora", "a", "--max-gpu-memory", "8"), ("--lora", "--max-gpu-memory")),
            (("--engine", "transformers", "--prompt-lookup"), ("--prompt-lookup", "openvino")),
            (("--draft-model", "a.gguf", "--prompt-lookup"), ("--draft-model", "--prompt-lookup")),
            (("--num-assistant-tokens", "0"), ("--num-assistant-tokens",)),
            (("--weight-format", "int2"), ("--weight-format",)),
            (("--max-gpu-memory", "0"), ("--max-gpu-memory",)),
        ],
    ),
)
def test_options_that_do_not_go_together_are_one_clear_message(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(run("worker", *arguments), *words)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_safetensors_of_a_hub_are_converted_once_for_openvino(safetensors: Path, tmp_path: Path) -> None:
    """With the real tools, which this installs: it takes the network and minutes."""
    with fake_hub({"org/tiny": hub_files(safetensors)}) as url:
        env = environment(url, tmp_path)
        with WorkerProcess("org/tiny", "--engine", "openvino", env=env, ready_s=1200) as worker:
            assert "Paris" in answer(worker)
            assert "Converting Qwen2ForCausalLM to OpenVINO with int8 weights: done" in worker.output
        with WorkerProcess("org/tiny", env=env, ready_s=PATIENCE_S) as worker:
            assert "Paris" in answer(worker)
            assert "converted already" in worker.output and "Converting" not in worker.output
    shutil.rmtree(tmp_path / "cache")  # 1.6 GB, which pytest would keep for three runs
