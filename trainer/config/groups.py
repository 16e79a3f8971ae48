"""The members of each Hydra group and the schema of each, by the node's `name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from trainer.config.callbacks import CALLBACKS
from trainer.config.loggers import LOGGERS
from trainer.config.own_parts import (
    OwnCallbackConfig,
    OwnLoggerConfig,
    OwnMetricConfig,
    OwnOptimizerConfig,
    OwnSchedulerConfig,
)
from trainer.config.profilers import PROFILERS
from trainer.config.schema import (
    Count,
    Fraction,
    LaunchConfig,
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
    """A batch job: the command, run on a login node, writes a job script and submits it."""

    nodes: Count
    """Nodes of the job, each with `trainer.devices` ranks."""
    starter: Literal["srun", "torchrun"]
    """srun starts a task for each rank; torchrun, a task a node, restarts failed ranks and survives node loss."""
    gpus_per_node: Annotated[int, Field(ge=0)]
    """GPUs of each node; 0 trains on the CPU."""
    cpus_per_rank: Count | None
    """CPU cores of each rank; null takes the cluster's default."""
    time_limit: Count | str | None
    """Value of sbatch --time: minutes, or text such as 1-12:00:00; null takes the partition's default."""
    stop_before_s: Count
    """Seconds before the time limit at which the ranks save and stop."""
    requeue: bool
    """Requeue the job after it has stopped before its time limit."""
    partition: str | None
    """SLURM partition; null takes the default one."""
    account: str | None
    """SLURM account; null takes the user's own."""
    log_dir: str
    """Directory of job scripts and logs."""
    setup: list[str]
    """Shell commands to run before the ranks start, such as "module load cuda"."""
    sbatch_options: list[str]
    """More options of sbatch, such as --qos=long."""
    srun_options: list[str]
    """More options of srun, such as --container-image=IMAGE."""
    python: str | None
    """Python interpreter on the nodes, for example in a container; null is the one that submits."""
    dry_run: bool
    """Print the job script without submitting it."""


@settings
class OptunaConfig(SweepConfig):
    """Jobs whose values Optuna chooses from the monitor.metric of earlier jobs."""

    num_trials: Count
    """Number of jobs, counted across interruptions."""
    sampler: Literal["tpe", "random"]
    """tpe is a tree-structured Parzen estimator; random draws values independently."""
    storage: str | None
    """URL of Optuna's storage, such as sqlite:///study.db; null is a journal file in the sweep's directory."""


@settings
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    momentum: Fraction
    """Momentum factor."""
    nesterov: bool
    """Use Nesterov momentum; needs momentum > 0."""
    fused: bool
    """Use one kernel for all parameters."""


@settings
class AdamConfig(OptimizerConfig):
    """Adam (name: adam) or AdamW (name: adamw)."""

    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    """Decay rates of the running averages of the gradient and its square."""
    eps: Positive
    """Term added to the denominator."""
    fused: bool
    """Use one kernel for all parameters."""


@settings
class MuonConfig(OptimizerConfig):
    """Muon on hidden weights, AdamW on all other parameters."""

    momentum: Fraction
    """Momentum factor."""
    nesterov: bool
    """Use Nesterov momentum."""
    adamw_lr: Positive
    """Learning rate of the parameters that AdamW optimizes."""


@settings
class DecayConfig(SchedulerConfig):
    """Linear or cosine decay after the warm-up."""

    final_fraction: Fraction
    """Share of the peak learning rate at the end."""


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
# Schemas of nodes with `_target_`; that of `model` comes from the task.
OWN_SCHEMAS: Mapping[str, type[Any]] = {
    "optimizer": OwnOptimizerConfig,
    "scheduler": OwnSchedulerConfig,
    "callbacks": OwnCallbackConfig,
    "logger": OwnLoggerConfig,
    "metrics": OwnMetricConfig,
}
# The groups whose members every task shares; `task`, `model` and `data` come from the task.
SHARED_GROUPS: Mapping[str, Mapping[str, type[Named]]] = {
    "optimizer": OPTIMIZERS,
    "scheduler": SCHEDULERS,
    "strategy": STRATEGIES,
    "profiler": PROFILERS,
    "launch": {"local": LaunchConfig, "slurm": SlurmLaunchConfig},
    "sweep": {"grid": SweepConfig, "optuna": OptunaConfig},
}
# Groups of which several members work together, each under its name in the group's node.
NAMED_GROUPS: Mapping[str, Mapping[str, type[Any]]] = {"logger": LOGGERS, "callbacks": CALLBACKS, "metrics": {}}
