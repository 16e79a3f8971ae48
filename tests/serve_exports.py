"""Small exports to be served."""

import csv
import random
from pathlib import Path

import torch
from dcgan_runs import FAST
from transformers import BertConfig, BertModel, BertTokenizer

from trainer.cli import main

FILLERS = ("the", "film", "was", "a", "day", "and", "we", "saw", "it", "in", "town", "with", "them")
MOODS = ("dull", "bright")


def trained_on_images(root: Path) -> Path:
    """Export of a LeNet on digits of 32x32 pixels, hardly trained."""
    few = ["trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    assert main(["task=cnn", *FAST, *few, f"run.root={root}", "run.name=lenet"]) == 0
    return exported(root / "cnn" / "lenet")


def trained_on_texts(root: Path, *words: str) -> Path:
    """Export of a BERT of 2 layers, 32 wide, that reads at most 48 tokens. Args: words: of the run."""
    draw = random.Random(0)
    for split, size in {"train": 40, "validation": 20}.items():
        with (root / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "other", "label"])
            for number in range(size):
                texts = [" ".join(draw.choices(FILLERS, k=draw.randint(1, 20))) for _ in range(2)]
                writer.writerow([f"{texts[0]} {MOODS[number % 2]}", texts[1], ["bad", "good"][number % 2]])
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *MOODS]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)}, model_max_length=48)
    tokenizer.save_pretrained(root / "encoder")
    torch.manual_seed(5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=48, **sizes)
    BertModel(config, add_pooling_layer=True).save_pretrained(root / "encoder")
    data = ["data=csv", "data.max_length=48", "batch.global_size=20"]
    data += [f"data.{split}={root / split}.csv" for split in ("train", "validation")]
    run = ["model=bert_base", f"model.path={root / 'encoder'}", f"run.root={root}", "run.name=small"]
    assert main(["task=bert", *run, *data, *FAST, *words]) == 0
    return exported(root / "bert" / "small")


def exported(run: Path) -> Path:
    """The run's export in ONNX."""
    assert main(["export", f"run={run}", "format=onnx"]) == 0
    return run / "export" / "onnx"
