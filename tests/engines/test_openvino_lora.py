"""A LoRA adapter in the graph: log probabilities are those of the merged weights, or the adapter is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.openvino.lora import module_name
from chatfleet.engines.openvino.model_files import inspect_model, ir_folder
from engines.openvino_models import TINY, Driver, Reference, load, prompts, write_ir, writer

PROMPT = [5, 9, 100, 42, 17, 300]
SIZES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
"""Of TINY: [out, in]."""
RANK, ALPHA = 4, 6.0


def tensors(modules: dict[str, tuple[int, int]] = SIZES, *, seed: int = 0, size: float = 0.1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for layer in range(TINY.layers):
        for module, (rows, columns) in modules.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            made[f"{name}.lora_A.weight"] = rng.normal(0, 0.15, (RANK, columns)).astype(np.float32)
            made[f"{name}.lora_B.weight"] = rng.normal(0, size, (rows, RANK)).astype(np.float32)
    return made


def save(folder: Path, values: dict[str, np.ndarray], **config: Any) -> Path:
    """As PEFT's save_pretrained does."""
    folder.mkdir()
    save_file(values, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": ALPHA} | config))
    return folder


def merged(model: Path, values: dict[str, np.ndarray], scale: float = ALPHA / RANK) -> Reference:
    reference = Reference(model, TINY)
    state = reference._model.state_dict()
    for name in {name.rsplit(".lora_", 1)[0] for name in values}:
        change = scale * values[f"{name}.lora_B.weight"] @ values[f"{name}.lora_A.weight"]
        state[name.removeprefix("base_model.model.") + ".weight"] += torch.from_numpy(change)
    return reference


def says_what(driver: Driver, reference: Reference, prompt: list[int] = PROMPT) -> None:
    request_id = driver.add(prompt, max_tokens=12, logprobs=0)
    driver.finish()
    token_ids, logprobs = reference.greedy(prompt, 12)
    assert driver.tokens(request_id) == token_ids
    got = [entry.logprob for delta in driver.deltas[request_id] for entry in delta.logprobs or []]
    assert got == pytest.approx(logprobs, abs=1e-2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = writer.write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", TINY)
    return path


@pytest.fixture(scope="module")
def ir(model: Path) -> Path:
    with ir_folder(inspect_model(str(model))) as converted:
        return write_ir(model.parent / "ir", TINY, converted)


class TestEffect:
    @pytest.mark.parametrize("form", ["gguf", "ir"])
    def test_log_probabilities_are_those_of_merged_weights(
        self, model: Path, ir: Path, tmp_path: Path, form: str
    ) -> None:
        values = tensors()
        lora = save(tmp_path / "lora", values)
        driver = load(model if form == "gguf" else ir, deterministic=True, lora_path=str(lora))
        reference = merged(model, values)
        assert reference.greedy(PROMPT, 12) != Reference(model, TINY).greedy(PROMPT, 12)
        says_what(driver, reference)
        says_what(driver, reference, prompts(1, 70)[0])
        vector = np.frombuffer(driver.backend.embed(PROMPT), "<f4")
        assert float(vector @ reference.embedding(PROMPT)) > 0.9999
        driver.backend.close()

    def test_a_file_without_a_config_has_a_scale_of_one(self, model: Path, tmp_path: Path) -> None:
        values = tensors({"self_attn.q_proj": (64, 64), "mlp.down_proj": (64, 128)}, seed=1)
        save_file(values, tmp_path / "mine.safetensors")
        driver = load(model, deterministic=True, lora_path=str(tmp_path / "mine.safetensors"))
        says_what(driver, merged(model, values, scale=1.0))
        driver.backend.close()

    def test_the_configs_scales_are_used(self, model: Path, tmp_path: Path) -> None:
        values = tensors({"self_attn.v_proj": (32, 64)}, seed=2)
        lora = save(tmp_path / "lora", values, use_rslora=True, alpha_pattern={"v_proj": 10, "q_proj": 0})
        driver = load(model, deterministic=True, lora_path=str(lora))
        says_what(driver, merged(model, values, scale=10 / RANK**0.5))
        driver.backend.close()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_halves_are_read(self, model: Path, tmp_path: Path, dtype: torch.dtype) -> None:
        halves = {name: torch.from_numpy(value).to(dtype) for name, value in tensors(seed=3).items()}
        save_torch(halves, tmp_path / "half.safetensors")
        driver = load(model, deterministic=True, lora_path=str(tmp_path / "half.safetensors"))
        says_what(driver, merged(model, {name: value.float().numpy() for name, value in halves.items()}, scale=1.0))
        driver.backend.close()

    def test_it_goes_with_prompt_lookup(self, model: Path, tmp_path: Path) -> None:
        values = tensors(seed=5)
        lora = save(tmp_path / "lora", values)
        driver = load(model, deterministic=True, lora_path=str(lora), prompt_lookup=True)
        says_what(driver, merged(model, values))
        driver.backend.close()


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("model.layers[11].self_attn.q_proj.weight", "layers.11.self_attn.q_proj"),
        ("__module.model.layers.3.mlp.down_proj/ov_ext::linear/MatMul", "layers.3.mlp.down_proj"),
        ("__module.model.layers.3.mlp.down_proj/aten::linear/MatMul_1", "layers.3.mlp.down_proj"),
        ("self.model.layers.0.self_attn.o_proj.weight", "layers.0.self_attn.o_proj"),
        ("self.model.layers.0.self_attn.o_proj.weight_compressed", "layers.0.self_attn.o_proj"),
        ("MatMul_10778", None),
        ("model.embed_tokens.weight", None),
    ],
)
def test_a_module_is_known_by_its_nodes_name(name: str, module: str | None) -> None:
    assert module_name(name) == module


class TestRefusals:
    def refused(self, model: Path, lora: Path, match: str, **config: Any) -> None:
        with pytest.raises(ConfigurationError, match=match):
            load(model, lora_path=str(lora), **config)

    def test_one_that_changes_nothing(self, model: Path, tmp_path: Path) -> None:
        self.refused(model, save(tmp_path / "lora", tensors(size=0.0)), "changes nothing")

    def test_one_of_another_model(self, model: Path, tmp_path: Path) -> None:
        self.refused(model, save(tmp_path / "a", tensors({"attn.c_attn": (64, 64)})), "has no layers.0.attn.c_attn")
        self.refused(model, save(tmp_path / "b", tensors({"mlp.up_proj": (96, 64)})), "for 64 to 96 values")

    @pytest.mark.parametrize(
        ("name", "size"),
        [
            ("base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector", (64,)),
            ("base_model.model.lm_head.weight", (512, 64)),
            ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", (4, 64)),
        ],
    )
    def test_what_is_more_than_an_adapter_of_linear_layers(
        self, model: Path, tmp_path: Path, name: str, size: tuple[int, ...]
    ) -> None:
        values = tensors({"self_attn.q_proj": (64, 64)}) | {name: np.ones(size, np.float32)}
        self.refused(model, save(tmp_path / "lora", values), "merge_and_unload")

    def test_a_graph_whose_layers_have_no_names(self, tmp_path: Path) -> None:
        path = writer.write_model(tmp_path / "q.gguf", TINY, dtype=GGMLQuantizationType.Q8_0)
        self.refused(path, save(tmp_path / "lora", tensors()), "quantised GGUF.*Give an F16 GGUF file")

    def test_kinds_that_it_does_not_know(self, model: Path, tmp_path: Path) -> None:
        self.refused(model, save(tmp_path / "lora", tensors(), use_dora=True), "use_dora")

    @pytest.mark.parametrize("content", [b"", b"GGUF" * 10, b"\x08\0\0\0\0\0\0\0{}{}{}{}", b"\x02\0\0\0\0\0\0\0{}"])
    def test_garbage(self, model: Path, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.safetensors").write_bytes(content)
        self.refused(model, tmp_path / "a.safetensors", "LoRA adapter")

    def test_what_is_not_there(self, model: Path, tmp_path: Path) -> None:
        self.refused(model, tmp_path, "no LoRA adapter at .*adapter_model.safetensors")

    def test_beside_a_draft_model(self, model: Path, tmp_path: Path) -> None:
        lora = save(tmp_path / "lora", tensors())
        self.refused(model, lora, "leave out --draft-model", draft_model_path=str(model))
