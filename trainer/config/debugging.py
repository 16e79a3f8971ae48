"""Lightning's arguments for trying a configuration, as values of other keys.

Applied to the composed configuration, so that config.yaml, every rank and `--cfg job` have the values that count.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def apply_debugging(mapping: DictConfig) -> DictConfig:
    """Set in place what trainer.fast_dev_run and trainer.overfit_batches mean; a wrong value of them is left alone."""
    trainer = mapping.get("trainer")
    if not isinstance(trainer, DictConfig):
        return mapping
    overfit, trial = trainer.get("overfit_batches"), trainer.get("fast_dev_run")
    values: dict[str, Any] = {}
    if isinstance(trial, int) and trial > 0:
        values |= _trial(int(trial), mapping)
    if isinstance(overfit, int | float) and overfit > 0:
        values |= {"trainer.limit_train_batches": overfit, "trainer.limit_val_batches": overfit}
    for key, value in values.items():
        OmegaConf.update(mapping, key, value, merge=False, force_add=True)
    return mapping


def _trial(num_steps: int, mapping: DictConfig) -> dict[str, Any]:
    root = mapping["run"]._get_node("root")
    return {
        "trainer.max_epochs": 1,
        "trainer.max_steps": num_steps,
        **{f"trainer.limit_{name}_batches": num_steps for name in ("train", "val", "test")},
        "trainer.log_every_n_steps": 1,
        "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.max_time": None,
        "monitor.patience": None,
        "logger": {},
        "run.root": f"{root._value()}/fast_dev_run",
        "run.fresh": True,
    }
