"""Model families through the transformers engine: what it computes is what transformers' own forward pass gives.

Models are tiny and random, saved and loaded again as a user's would be. Prompts are longer than every sliding window
(which is longer than what a trial run at the start might see), more than one step reads, and of different lengths
side by side.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from chatfleet.core.errors import ConfigurationError
from chatfleet.engines.base import EngineConfig, GenerateRequest, SamplingParams, TokenDelta
from chatfleet.engines.transformers.backend import TransformersBackend

VOCABULARY = 300
WINDOW = 40
PROMPT_LENGTHS = (130, 110, 50, 7, 1)  # a step reads at most 256 tokens, and the first three have 290
ANSWER_TOKENS = 12
TOLERANCE = 1e-4

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FULL_AND_SLIDING = {
    "num_hidden_layers": 4,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
GPT2_STYLE = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}

BATCHED: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama with scaled rotary embeddings": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": {},
    "qwen2 with a window above its first layers": {
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 2,
    },
    "qwen3": {"head_dim": 24},
    "mistral": {"sliding_window": WINDOW},
    "gemma": {"head_dim": 24},
    "gemma2": {
        **FULL_AND_SLIDING,
        "head_dim": 24,
        "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    },
    "gemma3_text": {**FULL_AND_SLIDING, "head_dim": 24, "query_pre_attn_scalar": 20},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": WINDOW},
    "gpt2": GPT2_STYLE,
    "gpt_neox": {"rotary_pct": 0.5},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "granite": {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7},
    "olmo2": {},
    "olmo3": FULL_AND_SLIDING,
    "exaone4": FULL_AND_SLIDING,
    "stablelm": {},
    "starcoder2": {"sliding_window": WINDOW},
    "cohere2": {**FULL_AND_SLIDING, "logit_scale": 1.0},
    "smollm3": {"num_hidden_layers": 4},
    "glm4": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3_moe": {**EXPERTS, "head_dim": 24},
    "gpt_oss": {**FULL_AND_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
}
ONE_AT_A_TIME: dict[str, dict[str, Any]] = {
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "gptj": {**GPT2_STYLE, "rotary_dim": 8},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "llama4_text": {
        "num_hidden_layers": 4,
        "attention_chunk_size": WINDOW,
        "no_rope_layers": [1, 1, 1, 0],
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 96,
        "head_dim": 16,
    },
    "deepseek_v3": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 48,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 32,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    "jamba": {
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "mamba_headdim": 32,
        "mamba_ngroups": 1,
        "use_mamba_kernels": False,
        "num_mem_blocks": 1,
        "num_key_value_heads": 4,
    },
    "qwen3_next": {
        **EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "head_dim": 16,
        "shared_expert_intermediate_size": 48,
    },
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
}
QUICK = {"llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2", "mixtral", "falcon", "deepseek_v3"}
"""One model of each kind; the long suite has them all."""

REFUSED: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 32, "n_groups": 1},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "attention_window_size": WINDOW,
        "lru_width": 64,
        "head_dim": 16,
    },
    "minimax": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_local_experts": 4,
        "head_dim": 16,
        "block_size": 16,
    },
}


def save(folder: Path, name: str, **settings: Any) -> Path:
    """A random model, the same each time, whose weights are so large that tokens differ clearly in probability."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.partition(" ")[0], **COMMON | settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # biases are zeros and norms ones, where nobody would miss them
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    return folder


def own(folder: Path) -> PreTrainedModel:
    """The model in transformers' own hands; "eager" is the attention that its authors wrote."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def engine(folder: Path) -> TransformersBackend:
    config = EngineConfig(
        engine="transformers", model_path=str(folder), device="cpu", dtype="float32", kv_cache_gb=0.01
    )
    return TransformersBackend(config)


def prompt_of(length: int) -> list[int]:
    return [3 + (37 * position + 11 * length) % (VOCABULARY - 3) for position in range(length)]


def add(backend: TransformersBackend, length: int, **sampling: Any) -> None:
    """The prompt of that length, which is also the request's id."""
    params = SamplingParams(**{"max_tokens": ANSWER_TOKENS, "temperature": 0, **sampling})
    backend.add(GenerateRequest(request_id=length, prompt_token_ids=prompt_of(length), sampling=params))


def run(backend: TransformersBackend) -> dict[int, list[TokenDelta]]:
    deltas: dict[int, list[TokenDelta]] = {}
    while backend.next_step_s() is not None:
        for delta in backend.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


@torch.no_grad()
def assert_as_transformers_computes(model: PreTrainedModel, prompt: Sequence[int], deltas: list[TokenDelta]) -> None:
    """Greedy tokens, and log probabilities at every position of prompt and answer, which must be asked for."""
    input_ids = torch.tensor([prompt])
    generated = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert [token_id for delta in deltas for token_id in delta.token_ids] == generated.sequences[
        0, len(prompt) :
    ].tolist()
    of_prompt, of_answer = deltas[0].prompt_logprobs, [entry for delta in deltas for entry in delta.logprobs or ()]
    assert of_prompt is not None and of_prompt[0] is None and len(of_prompt) == len(prompt)
    entries = [entry for entry in (*of_prompt, *of_answer) if entry is not None]
    logits = torch.cat([model(input_ids).logits[0, :-1], *generated.logits])
    expected = torch.log_softmax(logits, dim=-1)
    assert len(entries) == len(expected) == len(prompt) - 1 + ANSWER_TOKENS
    assert [entry.token_id for entry in entries] == generated.sequences[0, 1:].tolist()
    got = [[entry.logprob, *(value for _, value in entry.top)] for entry in entries]
    token_ids = [[entry.token_id, *(token_id for token_id, _ in entry.top)] for entry in entries]
    error = (torch.tensor(got) - expected.gather(1, torch.tensor(token_ids))).abs().max(dim=-1).values
    assert error.max() < TOLERANCE, f"by {error.max():.2g}, first at position {int((error > TOLERANCE).nonzero()[0])}"


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in BATCHED | ONE_AT_A_TIME]
)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests come in two waves: the second while the first, whose prompts take more than a step, generate."""
    folder = save(tmp_path / "model", name, **(BATCHED | ONE_AT_A_TIME)[name])
    backend = engine(folder)
    assert ("one sequence at a time" in caplog.text) == (name in ONE_AT_A_TIME)
    first, second = PROMPT_LENGTHS[:3], PROMPT_LENGTHS[3:]
    for length in first:
        add(backend, length, logprobs=20, prompt_logprobs=True)
    deltas = {length: list[TokenDelta]() for length in PROMPT_LENGTHS}
    while not all(deltas[length] for length in first):
        for delta in backend.step():
            deltas[delta.request_id].append(delta)
    for length in second:
        add(backend, length, logprobs=20, prompt_logprobs=True)
    for length, more in run(backend).items():
        deltas[length] += more
    model = own(folder)
    for length in PROMPT_LENGTHS:
        assert_as_transformers_computes(model, prompt_of(length), deltas[length])


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_right_is_refused_by_name(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", name, **REFUSED[name])
    with pytest.raises(ConfigurationError, match=f"does not serve models of type '{name}'.*register"):
        engine(folder)


@pytest.mark.parametrize(
    ("name", "rope", "settings"),
    [
        ("llama", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}, {}),
        (
            "phi3",
            {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
            {"original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_embeddings_that_change_with_the_length_bound_the_context(
    name: str, rope: dict[str, Any], settings: dict[str, Any], tmp_path: Path
) -> None:
    """Behind the original length they would change for everyone in the batch."""
    rope = rope | {"original_max_position_embeddings": 64}
    folder = save(tmp_path / "model", name, rope_parameters=rope, **settings)
    backend, model = engine(folder), own(folder)
    assert backend.capabilities.context_length == 64
    lengths = (50, 64 - ANSWER_TOKENS)
    for length in lengths:
        add(backend, length, logprobs=20, prompt_logprobs=True)
    deltas = run(backend)
    for length in lengths:
        assert_as_transformers_computes(model, prompt_of(length), deltas[length])
