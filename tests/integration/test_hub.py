"""Models from a Hugging Face hub."""

from pathlib import Path

import pytest

from chatfleet.worker.model_source import bundled_model_path
from support.fake_hub import fake_hub
from support.processes import WorkerProcess


def test_a_hugging_face_id_is_fetched_served_and_kept(tmp_path: Path) -> None:
    repositories = {"org/tiny": {"README.md": b"# tiny", "tiny-f16.gguf": bundled_model_path().read_bytes()}}
    with fake_hub(repositories) as url:
        env = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
        with WorkerProcess("org/tiny", env=env) as worker, worker.http() as http:
            assert http.get("/v1/models").json()["data"][0]["id"] == "org/tiny"
            answer = http.post("/v1/completions", json={"prompt": "Once upon a time", "max_tokens": 4})
            assert answer.json()["choices"][0]["text"]
        assert "tiny-f16.gguf" in worker.output, "no progress was shown"
    assert list(tmp_path.rglob("*.gguf"))


@pytest.mark.long
def test_an_unknown_id_is_one_clear_message(tmp_path: Path) -> None:
    with fake_hub({}) as url, pytest.raises(AssertionError, match=r"Error: 'org/none' is no file or folder here"):
        WorkerProcess("org/none", env={"HF_ENDPOINT": url, "HF_HOME": str(tmp_path)})
