"""Write a model's tokenizer as tokenizer.json: `python -m ... OUT FOLDER [GGUF_NAME]`. Runs in a process of its own."""

import sys

from transformers import AutoTokenizer


def main(out: str, folder: str, gguf_name: str | None = None) -> None:
    extra = {} if gguf_name is None else {"gguf_file": gguf_name}
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **extra)
    tokenizer.backend_tokenizer.save(f"{out}/tokenizer.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
