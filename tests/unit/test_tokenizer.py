"""Tokenizers: built from files, exact in bytes."""

import json
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from chatfleet.chat.gguf import read_gguf
from chatfleet.chat.text import decode
from chatfleet.chat.tokenizer import ByteTokenizer, load_tokenizer_json
from chatfleet.core.errors import ConfigurationError

CORPUS = ["The quick brown fox jumps over the lazy dog. ", "Grüße, 世界! 🚢 12345 ", "don't stop\n\n  now"] * 50


def trained_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_gguf(path: Path, tokenizer: Tokenizer, **fields: str) -> Path:
    """A GGUF file with the tokenizer's vocabulary and no tensors."""
    state = json.loads(tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model(fields.get("model", "gpt2"))
    writer.add_tokenizer_pre(fields.get("pre", "gpt-2"))
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token == "<|end|>" else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.token_to_id("<|end|>"))
    writer.add_chat_template("{{ messages[0].content }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return trained_bpe()


def test_a_gguf_vocabulary_gives_the_tokenizer_it_was_written_from(bpe: Tokenizer, tmp_path: Path) -> None:
    metadata = read_gguf(write_gguf(tmp_path / "m.gguf", bpe))
    tokenizer = metadata.tokenizer()
    for text in [*CORPUS, "unseen wörds ☃ 007", "a<|end|>b", ""]:
        assert tokenizer.encode(text, add_special_tokens=False) == bpe.encode(text).ids
    assert tokenizer.eos_token_ids == {bpe.token_to_id("<|end|>")}
    assert tokenizer.is_special(bpe.token_to_id("<|end|>"))
    assert metadata.chat_template == "{{ messages[0].content }}"
    assert metadata.eos_token == "<|end|>"


@given(text=st.text(max_size=60))
def test_any_text_survives_encoding_and_decoding(text: str, byte_level: "ByteLevelPair") -> None:
    assert decode(byte_level.tokenizer, byte_level.tokenizer.encode(text, add_special_tokens=False)) == text


class ByteLevelPair:
    def __init__(self, path: Path) -> None:
        self.tokenizer = load_tokenizer_json(path, eos_token_ids=[0])


@pytest.fixture(scope="module")
def byte_level(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ByteLevelPair:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    bpe.save(str(path))
    return ByteLevelPair(path)


@given(text=st.text(max_size=40).filter(lambda text: "<|" not in text))
def test_the_byte_tokenizer_is_utf_8(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text, add_special_tokens=True)
    assert bytes(ids) == text.encode()
    assert decode(tokenizer, ids) == text


def test_the_byte_tokenizer_reads_its_control_tokens() -> None:
    ids = ByteTokenizer().encode("<|im_start|>user\n<|x|><|im_end|>", add_special_tokens=False)
    assert ids == [256, *b"user\n<|x|>", 257]


def test_sentencepiece_tokens_are_decoded_to_bytes_and_spaces(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "▁hello": 1, "▁world": 2, "<0xC3>": 3, "<0xA9>": 4, "</s>": 5, "▁": 6}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    loaded = load_tokenizer_json(path, eos_token_ids=[5])
    assert decode(loaded, [1, 2, 3, 4, 5]) == "hello worldé"
    assert loaded.token_bytes(99) == b""


def test_a_tokenizer_that_gguf_cannot_describe_is_refused_by_name(bpe: Tokenizer, tmp_path: Path) -> None:
    metadata = read_gguf(write_gguf(tmp_path / "m.gguf", bpe, pre="mystery"))
    with pytest.raises(ConfigurationError, match="'mystery'.*tokenizer.json"):
        metadata.tokenizer()


def test_a_file_that_is_no_gguf_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ConfigurationError, match="Download or convert it again"):
        read_gguf(path)
    with pytest.raises(ConfigurationError, match="no file"):
        read_gguf(tmp_path / "absent.gguf")


def test_a_broken_tokenizer_json_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_tokenizer_json(path, eos_token_ids=[])
