"""Command lines of small DCGANs."""

from pathlib import Path

FAST = [
    "logger=none",
    "run.report=false",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=1",
]
DCGAN = ["task=dcgan", *FAST, "model.width=8", "model.latent_size=16", "trainer.limit_train_batches=7"]
SHORT = [
    "trainer.check_val_every_n_epoch=1",
    "task.sample_every_n_steps=3",
    "task.num_samples=9",
    "task.num_scored=41",
    "batch.global_size=16",
    "batch.eval_size=7",
]


def run_dir(folder: Path) -> Path:
    """The run `gan` below a folder."""
    return folder / "outputs" / "dcgan" / "gan"
