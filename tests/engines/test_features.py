"""The table of what each engine honours, held against the engines as they are loaded."""

from pathlib import Path

import msgspec
import pytest

from chatfleet.engines.base import EngineConfig, SamplingParams
from chatfleet.engines.features import ENGINES, NO, PARAMETERS, YES, EngineFeatures
from chatfleet.engines.registry import BACKENDS, backend_path, create_backend
from chatfleet.worker.model_source import bundled_model_path
from support.models import write_ir, write_safetensors

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    """What each column is about."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "openvino (GGUF)": bundled_model_path(),
        "openvino (IR)": write_ir(folder / "ir"),
        "transformers": write_safetensors(folder / "safetensors"),
        "simulated": None,
    }


def test_every_parameter_has_a_row_and_every_engine_a_column() -> None:
    assert PARAMETERS.keys() == {field.name for field in msgspec.structs.fields(SamplingParams)}
    assert {column.engine for column in ENGINES} == BACKENDS.keys()
    assert len({tuple(column.rows()) for column in ENGINES}) == 1, "columns have different rows"


@pytest.mark.parametrize("column", ENGINES, ids=lambda column: column.title)
@pytest.mark.long
def test_the_table_says_what_the_loaded_engine_says(column: EngineFeatures, models: dict[str, Path | None]) -> None:
    model = models[column.title]
    config = EngineConfig(
        engine=column.engine,
        model_path=None if model is None else str(model),
        device="cpu",
        kv_cache_gb=0.1,
        token_bytes=[bytes([value]) for value in range(256)],
    )
    backend = create_backend(backend_path(column.engine), config)
    try:
        loaded = backend.capabilities
    finally:
        backend.close()
    rows = column.rows()
    assert {field for field, name in PARAMETERS.items() if rows[name] != NO} == loaded.parameters
    assert rows["top_logprobs"] == (f"to {loaded.max_top_logprobs}" if loaded.max_top_logprobs else NO)
    assert (rows["embeddings"] == YES) == (loaded.embedding_dim is not None)
