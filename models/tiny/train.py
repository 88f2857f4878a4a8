"""Trains the model on the dialogues of `generate.py`, on the CPU, in bfloat16 where it is safe."""

import argparse
import json
import math
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpe
import numpy as np
import template
import torch
from model import Shape, TinyModel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

BUILD = Path(__file__).parent / "build"
# Rows are padded to one of these lengths; a compiled graph for each. The longest is the context length.
LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
LEARNT_TOKENIZER_RECORDS = 20_000
IGNORED = -100  # cross_entropy's mark for targets that do not count


@dataclass(frozen=True)
class Stage:
    """One run of training: its data, where it starts and ends, and its pace (peak learning rates)."""

    data: Path
    start: Path | None
    output: Path
    steps: int
    muon_lr: float
    adam_lr: float


STAGES = {
    1: Stage(BUILD / "train-1.jsonl", None, BUILD / "stage-1.pt", 1600, 0.02, 3e-3),
    # From where the first ended, on what it was weak in, more gently.
    2: Stage(BUILD / "train-2.jsonl", BUILD / "stage-1.pt", BUILD / "stage-2.pt", 720, 0.012, 2e-3),
    3: Stage(BUILD / "train-3.jsonl", BUILD / "stage-2.pt", BUILD / "checkpoint.pt", 480, 0.009, 1.5e-3),
}


@dataclass(frozen=True)
class Batch:
    """Padded token ids (rows, length), and the flat positions whose next token is learnt, with those tokens.

    Targets of `IGNORED` fill the positions up.
    """

    token_ids: Tensor
    positions: Tensor
    targets: Tensor


def text_of(item: dict[str, Any]) -> str:
    if "text" in item:
        return str(item["text"]) + bpe.IM_END
    return template.render(item["messages"], item.get("tools"))


def read(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [text_of(json.loads(line)) for line in file]


@dataclass(frozen=True)
class Marks:
    """The token ids by which the learnt parts of a text are found."""

    start: int
    end: int
    assistant: int
    newline: int
    equals: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Marks":
        roles = tokenizer.encode("assistant\n").ids
        equals = tokenizer.encode(" =").ids
        assert len(roles) == 2 and len(equals) == 1, "marks must be one token, or the mask is off"
        return cls(tokenizer.token_to_id(bpe.IM_START), tokenizer.token_to_id(bpe.IM_END), *roles, *equals)


def learnt_mask(ids: np.ndarray, marks: Marks) -> np.ndarray:
    """True where a token is to be predicted: in assistant turns with their end mark, or all of a bare document.

    Of a sheet of sums only the results: the numbers to add are arbitrary.
    """
    if ids[0] != marks.start:
        if not (np.any(ids == marks.newline) and np.any(ids == marks.equals)):
            return np.ones(len(ids), dtype=bool)
        lines = np.cumsum(ids == marks.newline) - (ids == marks.newline)
        after = np.cumsum(ids == marks.equals) - (ids == marks.equals)
        return np.asarray(after > lines)
    mask = np.zeros(len(ids), dtype=bool)
    for begin in np.flatnonzero(ids[:-1] == marks.start):
        if ids[begin + 1] == marks.assistant:
            first = begin + 3  # <|im_start|> assistant \n
            stop = first + int(np.argmax(ids[first:] == marks.end))
            mask[first : stop + 1] = True
    return mask


def encode(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    return [
        np.array(encoding.ids, dtype=np.int32)
        for begin in range(0, len(texts), 4096)
        for encoding in tokenizer.encode_batch_fast(texts[begin : begin + 4096])
    ]


def _batch(ids: np.ndarray, positions: np.ndarray) -> Batch:
    # A multiple of 512 positions, the spare ones ignored: oneDNN keeps a kernel with buffers for every shape that it
    # has met, 1024 of them: with a new shape in every step it grew by 40 MB a step, to 12 GB.
    spare = -len(positions) % 512
    targets = np.pad(ids.reshape(-1)[positions + 1], (0, spare), constant_values=IGNORED)
    return Batch(torch.from_numpy(ids), torch.from_numpy(np.pad(positions, (0, spare))), torch.from_numpy(targets))


def batches(rows: list[np.ndarray], tokenizer: Tokenizer, tokens_per_batch: int, seed: int) -> list[Batch]:
    """All rows once, alike lengths together, in random order. Rows beyond the context length are left out."""
    marks, pad = Marks.of(tokenizer), tokenizer.token_to_id(bpe.END_OF_TEXT)
    rng = random.Random(seed)
    by_length: dict[int, list[np.ndarray]] = defaultdict(list)
    for row in rows:
        fitting = [length for length in LENGTHS if length >= len(row)]
        if fitting:
            by_length[fitting[0]].append(row)
    made: list[Batch] = []
    for length, group in by_length.items():
        rng.shuffle(group)
        size = tokens_per_batch // length
        for first in range(0, len(group) - size + 1, size):
            ids = np.full((size, length), pad, dtype=np.int64)
            learnt = np.zeros((size, length), dtype=bool)
            for index, row in enumerate(group[first : first + size]):
                ids[index, : len(row)] = row
                learnt[index, : len(row)] = learnt_mask(row, marks)
            predicts = np.roll(learnt, -1, axis=1)
            predicts[:, -1] = False
            made.append(_batch(ids, np.flatnonzero(predicts)))
    rng.shuffle(made)
    return made


def head_loss(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, embedding).float(), targets)


def schedule(step: int, steps: int, warmup: int = 40) -> float:
    """Share of the peak learning rate: a short rise, a plateau, then a straight fall to almost nothing."""
    flat = steps * 0.25
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if step < flat else max(0.01, (steps - step) / (steps - flat))


def optimizers(model: TinyModel, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for vectors and embeddings."""
    matrices = [p for block in model.blocks for p in block.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen and p is not model.own_embedding]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.02),
        torch.optim.AdamW(
            [
                {"params": rest, "weight_decay": 0.0},
                # Decay pulls a token's own part to what it shares with its case twins.
                {"params": [model.own_embedding], "weight_decay": 0.05},
            ],
            lr=adam_lr,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def save(model: TinyModel, vocabulary: bpe.Vocabulary, path: Path) -> None:
    stored = {
        "shape": model.shape.as_dict(),
        "tokens": vocabulary.tokens,
        "merges": [list(merge) for merge in vocabulary.merges],
        "weights": model.state_dict(),
    }
    partial = path.with_suffix(".partial")
    torch.save(stored, partial)
    partial.replace(path)


def load(path: Path) -> tuple[TinyModel, bpe.Vocabulary]:
    """What `save` wrote."""
    stored = torch.load(path, map_location="cpu", weights_only=True)
    vocabulary = bpe.Vocabulary(stored["tokens"], [(left, right) for left, right in stored["merges"]])
    model = TinyModel(Shape(**stored["shape"]), *bpe.case_groups(vocabulary))
    model.load_state_dict(stored["weights"])
    return model, vocabulary


def fit(
    model: TinyModel, vocabulary: bpe.Vocabulary, made: list[Batch], stage: Stage, options: argparse.Namespace
) -> None:
    chosen = optimizers(model, stage.muon_lr, stage.adam_lr)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in chosen]
    head = head_loss
    if options.compile:
        for block in model.blocks:
            block.compile(dynamic=False)
        head = torch.compile(head_loss, dynamic=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    average, began, seen = math.nan, time.monotonic(), 0
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=len(made))
        for step, batch in enumerate(made):
            for optimizer, rates in zip(chosen, peaks, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(step, len(made))
            with torch.autocast("cpu", torch.bfloat16):
                embedding = model.embedding()
                hidden = model.hidden(batch.token_ids, embedding).flatten(0, 1)
                loss = head(hidden[batch.positions], embedding, batch.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in chosen:
                optimizer.step()
                optimizer.zero_grad()
            value, seen = loss.item(), seen + batch.token_ids.numel()
            average = value if math.isnan(average) else 0.98 * average + 0.02 * value
            progress.update(task, advance=1, description=f"loss {average:.3f}")
            if (step + 1) % 50 == 0:
                seconds = time.monotonic() - began
                progress.console.print(
                    f"step {step + 1}: loss {average:.4f}, {seen / seconds:.0f} tokens/s, {seconds / 60:.1f} min"
                )
            if (step + 1) % options.save_every == 0:
                save(model, vocabulary, stage.output)
    save(model, vocabulary, stage.output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", type=int, choices=sorted(STAGES), default=1)
    parser.add_argument("--steps", type=int, help="fewer steps than the stage has, for a trial")
    parser.add_argument("--merges", type=int, default=1200)
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--save-every", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--no-compile", dest="compile", action="store_false", help="for machines without a C++ compiler"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    torch._dynamo.config.recompile_limit = 32
    stage = STAGES[options.stage]
    texts = read(stage.data)
    if stage.start:
        model, vocabulary = load(stage.start)
    else:
        vocabulary = bpe.learn(texts[:LEARNT_TOKENIZER_RECORDS], options.merges)
        model = TinyModel(Shape(len(vocabulary.tokens)), *bpe.case_groups(vocabulary))
    tokenizer = bpe.build(vocabulary)
    made = batches(encode(texts, tokenizer), tokenizer, options.tokens_per_batch, options.seed)
    made = made[: options.steps or stage.steps]
    print(f"{len(texts)} texts, {len(made)} steps, {model.shape.vocab_size} tokens")
    fit(model, vocabulary, made, stage, options)


if __name__ == "__main__":
    main()
