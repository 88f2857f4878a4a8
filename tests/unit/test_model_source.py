"""Where a model's files come from."""

import pytest

from chatfleet.core.errors import ConfigurationError
from chatfleet.worker.hub import choose_gguf
from chatfleet.worker.model_source import load_served_model
from chatfleet.worker.settings import WorkerSettings

FILES = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-f16.gguf", "m-IQ2.gguf"]


@pytest.mark.parametrize(
    ("quantization", "chosen"), [(None, "m-Q8_0.gguf"), ("f16", "m-f16.gguf"), ("q4_k_m", FILES[1])]
)
def test_the_quantization_names_the_file(quantization: str | None, chosen: str) -> None:
    assert choose_gguf("org/m", FILES, quantization) == chosen


def test_a_repository_with_one_file_needs_no_choice() -> None:
    assert choose_gguf("org/m", ["odd-name.gguf"], None) == "odd-name.gguf"


@pytest.mark.parametrize(("names", "quantization"), [(FILES, "Q5_0"), (["a-IQ1.gguf", "b-IQ2.gguf"], None)])
def test_an_absent_quantization_lists_what_there_is(names: list[str], quantization: str | None) -> None:
    with pytest.raises(ConfigurationError, match="--quantization"):
        choose_gguf("org/m", names, quantization)


@pytest.mark.parametrize("model", ["./absent.gguf", "/no/such/folder", "absent.gguf"])
def test_a_path_that_is_not_there_is_no_hugging_face_id(model: str) -> None:
    with pytest.raises(ConfigurationError, match="There is no model at"):
        load_served_model(WorkerSettings(model=model))


def test_model_names_replace_the_default_name() -> None:
    simulated = WorkerSettings(engine="simulated", model_names=["a", "b"])
    assert load_served_model(simulated).names == ("a", "b")
    assert load_served_model(WorkerSettings(engine="simulated")).names == ("simulated",)
