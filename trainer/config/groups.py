"""The members of each Hydra group and the schema of each, by the node's `name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.schema import (
    Count,
    Fraction,
    LaunchConfig,
    LoggerConfig,
    Named,
    OptimizerConfig,
    Positive,
    SchedulerConfig,
    SweepConfig,
    settings,
)
from trainer.config.strategies import STRATEGIES


@settings
class SlurmLaunchConfig(LaunchConfig):
    """A batch job: the same line, typed on a login node, writes a script and submits it."""

    nodes: Count
    """Nodes of the job, each with `trainer.devices` ranks."""
    starter: Literal["srun", "torchrun"]
    """srun starts one task a rank; torchrun, one task a node, restarts failed ranks and survives a lost node."""
    gpus_per_node: Annotated[int, Field(ge=0)]
    """GPUs of each node; 0 trains on the CPU."""
    cpus_per_rank: Count | None
    """Cores of each rank; null leaves it to the cluster."""
    time_limit: Count | str | None
    """As sbatch's --time: minutes, or such as 1-12:00:00; null takes the partition's."""
    stop_before_s: Count
    """Seconds ahead of the time limit at which the ranks save and stop."""
    requeue: bool
    """Queue the job again when it has stopped ahead of its time limit."""
    partition: str | None
    """SLURM partition; null takes the default one."""
    account: str | None
    """SLURM account; null takes the user's own."""
    log_dir: str
    """Directory of job scripts and logs."""
    setup: list[str]
    """Shell lines before the ranks start, such as "module load cuda"."""
    sbatch_options: list[str]
    """Further options of sbatch, such as --qos=long."""
    srun_options: list[str]
    """Further options of srun, such as --container-image=IMAGE."""
    python: str | None
    """Interpreter on the nodes, as in a container; null is the one that submits."""
    dry_run: bool
    """Print the job script and submit nothing."""


@settings
class OptunaConfig(SweepConfig):
    """Jobs whose values Optuna chooses by what earlier ones have reached in monitor.metric."""

    num_trials: Count
    """Jobs in all, counted over interruptions."""
    sampler: Literal["tpe", "random"]
    """Tree-structured Parzen estimator, or values at random."""
    storage: str | None
    """URL of Optuna's storage, such as sqlite:///study.db; null is a journal in the sweep's directory."""


@settings
class NoLogger(LoggerConfig):
    """Only metrics.jsonl."""


@settings
class WandbLoggerConfig(LoggerConfig):
    """Weights & Biases: one run on rank 0."""

    project: str
    """W&B project."""
    entity: str | None
    """W&B team or user; null takes the account's default."""
    group: str | None
    """W&B group; null leaves the run ungrouped."""
    tags: list[str]
    """W&B tags."""
    notes: str | None
    """Free text shown with the run."""
    mode: Literal["auto", "online", "offline"]
    """auto is online when a key and a route to the server exist, else offline."""


@settings
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    momentum: Fraction
    """Share of the former update that is kept."""
    nesterov: bool
    """Look ahead by the momentum; needs momentum > 0."""
    fused: bool
    """One kernel for all parameters."""


@settings
class AdamConfig(OptimizerConfig):
    """Adam (name: adam) or AdamW (name: adamw)."""

    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    """Decay of the running mean and of the running square."""
    eps: Positive
    """Added to the denominator."""
    fused: bool
    """One kernel for all parameters."""


@settings
class MuonConfig(OptimizerConfig):
    """torch.optim.Muon on hidden matrices, AdamW on everything else."""

    momentum: Fraction
    """Share of the former update that is kept."""
    nesterov: bool
    """Look ahead by the momentum."""
    adamw_lr: Positive
    """Learning rate of the parameters that are no matrices."""


@settings
class DecayConfig(SchedulerConfig):
    """Constant, linear or cosine after the warm-up."""

    final_fraction: Fraction
    """Rate at the end as a share of the peak."""


OPTIMIZERS: Mapping[str, type[OptimizerConfig]] = {
    "sgd": SGDConfig,
    "adam": AdamConfig,
    "adamw": AdamConfig,
    "muon": MuonConfig,
}
SCHEDULERS: Mapping[str, type[SchedulerConfig]] = {
    "constant": SchedulerConfig,
    "linear": DecayConfig,
    "cosine": DecayConfig,
    "one_cycle": SchedulerConfig,
}
# The groups whose members every task shares; `task`, `model` and `data` come from the task.
SHARED_GROUPS: Mapping[str, Mapping[str, type[Named]]] = {
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
    "strategy": STRATEGIES,
    "logger": {"none": NoLogger, "wandb": WandbLoggerConfig},
    "launch": {"local": LaunchConfig, "slurm": SlurmLaunchConfig},
    "sweep": {"grid": SweepConfig, "optuna": OptunaConfig},
}
