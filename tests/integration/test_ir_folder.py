"""An OpenVINO IR folder, as optimum-cli writes it, served by the worker."""

from pathlib import Path

import pytest

from support.models import write_ir
from support.processes import WorkerProcess


@pytest.fixture(scope="module")
def ir_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with its tokenizer.json, template and configs."""
    return write_ir(tmp_path_factory.mktemp("models") / "tiny-ir")


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
