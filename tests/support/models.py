"""The bundled model in the other forms that models come in.

What an engine brings is imported where it is used: the others are tested without it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from chatfleet.chat.gguf import read_gguf
from chatfleet.worker.model_source import bundled_model_path


def write_ir(folder: Path) -> Path:
    """The bundled model as an OpenVINO IR folder, as optimum-cli writes one. `folder` is made."""
    from chatfleet.engines.openvino.conversion import convert_gguf

    folder.mkdir()
    convert_gguf(bundled_model_path(), folder)
    _write_companions(folder)
    return folder


def write_safetensors(folder: Path) -> Path:
    """The bundled model as a folder of float32 safetensors, as `save_pretrained` writes one. `folder` is made."""
    from gguf import GGUFReader
    from safetensors.numpy import save_file

    from support.model_writer import writer

    folder.mkdir()
    tensors = {
        writer.huggingface_name(t.name): float32_values(t) for t in GGUFReader(str(bundled_model_path())).tensors
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_companions(folder)
    return folder


def float32_values(tensor: Any) -> np.ndarray:
    """A GGUF file's tensor in its numpy shape."""
    from gguf import quants

    size = [int(length) for length in reversed(tensor.shape)]
    return np.array(quants.dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(size)


def _write_companions(folder: Path) -> None:
    """Configuration, tokenizer and chat template."""
    from gguf import GGUFReader

    metadata, reader = read_gguf(bundled_model_path()), GGUFReader(str(bundled_model_path()))

    def number(name: str) -> Any:
        return reader.fields[f"qwen2.{name}"].contents()

    tokenizer = metadata.tokenizer()
    end = sorted(tokenizer.eos_token_ids)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": number("embedding_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": number("attention.head_count"),
        "num_key_value_heads": number("attention.head_count_kv"),
        "intermediate_size": number("feed_forward_length"),
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base"),
        "vocab_size": tokenizer.vocab_size,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": metadata.eos_token})
    )
    (folder / "chat_template.jinja").write_text(metadata.chat_template or "")
    tokenizer._tokenizer.save(str(folder / "tokenizer.json"))
