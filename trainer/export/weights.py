"""The format safetensors: weights, and the configuration of the network that they belong to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.own_parts import find_targets
from trainer.errors import UserError
from trainer.export.devices import torch_device
from trainer.export.processing import Arrays
from trainer.export.source import Source
from trainer.run.files import CONFIG_FILE, INPUT_SPEC_FILE, MODEL_FILE
from trainer.run.stored_config import read_stored_config

TOKENIZER_DIR = "tokenizer"


def write(source: Source, folder: Path) -> None:
    """Write what `Inference.load` reads of a run, without optimizer, other networks and the training's files."""
    from safetensors.torch import save_model
    from torch import nn

    # save_model keeps one name of weights that share memory, and needs a module for it.
    names = source.model.prefix.strip(".")
    network = nn.ModuleDict({names: source.model.network}) if names else source.model.network
    save_model(network, str(folder / MODEL_FILE))
    for name in (CONFIG_FILE, INPUT_SPEC_FILE):
        shutil.copyfile(source.run_dir / name, folder / name)
    if (source.run_dir / TOKENIZER_DIR).is_dir():
        shutil.copytree(source.run_dir / TOKENIZER_DIR, folder / TOKENIZER_DIR)


def open_network(folder: Path, gpu: int | None) -> Any:
    """The network on the CPU or a GPU, as a function of arrays.

    Raises: UserError: a file is damaged, or the network is of the user's own, which only their code can build.
    """
    import torch

    from trainer.inference import float32

    stored = read_stored_config(folder)
    targets = [target for _, target in find_targets(stored.mapping)]
    if targets:
        advice = "formats torch_export and onnx need no code"
        raise UserError(f"{folder}: {CONFIG_FILE} names code, {targets[0]}, which an export never imports", advice)
    device = torch_device(gpu)
    model = stored.task.load_inference(float32(stored.config), folder, device)

    def forward(arrays: Arrays) -> np.ndarray:
        return model.forward({name: torch.from_numpy(array).to(device) for name, array in arrays.items()}).cpu().numpy()

    return forward
