"""Writes a trained checkpoint as the one GGUF file that openvino-genai, transformers and llama.cpp load."""

import argparse
import hashlib
from pathlib import Path

import bpe
import gguf
import numpy as np
import template
import train
from model import Shape, TinyModel
from rich.console import Console

HERE = Path(__file__).parent
BUILD = HERE / "build"
ARTEFACT = HERE.parents[1] / "src" / "chatfleet" / "bundled" / "chatfleet-tiny.gguf"
QUANTIZATIONS = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_BLOCK_NAMES = {
    "attention_norm.weight": "attn_norm.weight",
    "attention.q.weight": "attn_q.weight",
    "attention.q.bias": "attn_q.bias",
    "attention.k.weight": "attn_k.weight",
    "attention.k.bias": "attn_k.bias",
    "attention.v.weight": "attn_v.weight",
    "attention.v.bias": "attn_v.bias",
    "attention.o.weight": "attn_output.weight",
    "mlp_norm.weight": "ffn_norm.weight",
    "gate.weight": "ffn_gate.weight",
    "up.weight": "ffn_up.weight",
    "down.weight": "ffn_down.weight",
}


def tensors(model: TinyModel) -> dict[str, np.ndarray]:
    """The weights under their GGUF names, float32. The output layer is the embedding, so it is not repeated."""
    weights = model.state_dict()
    named = {"token_embd.weight": model.embedding().detach(), "output_norm.weight": weights["norm.weight"]}
    for index in range(model.shape.layers):
        for ours, theirs in _BLOCK_NAMES.items():
            named[f"blk.{index}.{theirs}"] = weights[f"blocks.{index}.{ours}"]
    return {name: tensor.float().numpy() for name, tensor in named.items()}


def _add_metadata(writer: gguf.GGUFWriter, shape: Shape, file_type: gguf.LlamaFileType) -> None:
    writer.add_name("chatfleet-tiny")
    writer.add_description("A demonstration chat model of a few million parameters, bundled with ChatFleet.")
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: bpe.Vocabulary) -> None:
    ids = vocabulary.special_ids
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in bpe.SPECIALS else gguf.TokenType.NORMAL for t in vocabulary.tokens]
    )
    writer.add_token_merges([f"{left} {right}" for left, right in vocabulary.merges])
    writer.add_eos_token_id(ids[bpe.IM_END])
    writer.add_pad_token_id(ids[bpe.END_OF_TEXT])
    writer.add_bos_token_id(ids[bpe.END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_chat_template(template.SOURCE)


def write(model: TinyModel, vocabulary: bpe.Vocabulary, path: Path, quantization: str) -> None:
    weight_type, file_type = QUANTIZATIONS[quantization]
    writer = gguf.GGUFWriter(path, "qwen2")
    _add_metadata(writer, model.shape, file_type)
    _add_tokenizer(writer, vocabulary)
    for name, tensor in tensors(model).items():
        if tensor.ndim == 1:  # norms and biases stay float32: they are small and loaders expect it
            writer.add_tensor(name, tensor)
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, weight_type), raw_dtype=weight_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=BUILD / "checkpoint.pt")
    parser.add_argument("--output", type=Path, default=ARTEFACT)
    parser.add_argument("--quantization", choices=sorted(QUANTIZATIONS), default="q8_0")
    options = parser.parse_args()
    model, vocabulary = train.load(options.checkpoint)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write(model, vocabulary, options.output, options.quantization)
    content = options.output.read_bytes()
    parameters = sum(tensor.size for tensor in tensors(model).values())
    Console().print(
        f"{options.output}: {parameters / 1e6:.2f}M parameters, {len(content) / 1e6:.1f} MB, "
        f"sha256 {hashlib.sha256(content).hexdigest()}"
    )


if __name__ == "__main__":
    main()
