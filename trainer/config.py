"""The schema: what each configuration value is. Values live in conf/, never here; so no field has a default.

Torch-free, so that a mistake is told before anything slow is imported. A task adds the schema of its `task`, `model`
and `data` nodes in `tasks/<name>/config.py`; `trainer.parsing` turns a composed mapping into these classes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
# Lightning reads an int as a number of batches and a float as a share of them.
BatchLimit = Annotated[int, Field(ge=0)] | Fraction

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen, strictly typed node of the configuration: unknown keys and wrong types are refused."""
    return pydantic_dataclass(cls, config=STRICT, kw_only=True, frozen=True)  # pyright: ignore[reportReturnType]


@settings
class Named:
    """A node whose fields depend on which member of a Hydra group was chosen."""

    # Fields that say where or how something is done, not what: two runs that differ only in these are the same run.
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset()

    name: str
    """The member of the group."""


@settings
class TaskConfig(Named):
    """What a task asks beside model and data; each task extends it."""


@settings
class ModelConfig(Named):
    """A model and its size; each task extends it."""


@settings
class DataConfig(Named):
    """A data set; each task extends it."""


@settings
class TrainerConfig:
    """Lightning's own arguments under Lightning's own names. One batch is one step here, so cadences count steps."""

    accelerator: Literal["auto", "cpu", "cuda"]
    """Where tensors live; auto takes the GPUs that are visible, else the CPU."""
    devices: Count | Literal["auto"]
    """Ranks on this node; auto is every visible GPU, or one process on the CPU."""
    num_nodes: Count
    """Nodes of the job, each with `devices` ranks."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"]
    """Numeric type of weights and arithmetic."""
    max_epochs: Count | None
    """Passes over the training set; null when max_steps decides."""
    max_steps: Annotated[int, Field(ge=-1)]
    """Optimizer steps; -1 when max_epochs decides."""
    gradient_clip_val: Positive | None
    """Largest norm of the global gradient, per optimizer; null never clips."""
    log_every_n_steps: Count
    """Steps between two lines of training metrics."""
    val_check_interval: Count | Annotated[float, Field(gt=0.0, le=1.0)]
    """Steps (int) or share of an epoch (float) between evaluations."""
    check_val_every_n_epoch: Count | None
    """Epochs between evaluations; null counts val_check_interval across epochs."""
    limit_train_batches: BatchLimit
    """Steps (int) or share (float) of an epoch that is trained on."""
    limit_val_batches: BatchLimit
    """Batches (int) or share (float) of the validation set that is evaluated."""
    limit_test_batches: BatchLimit
    """Batches (int) or share (float) of the test set that is evaluated."""
    num_sanity_val_steps: Annotated[int, Field(ge=0)]
    """Validation batches tried before training starts."""
    sync_batchnorm: bool
    """Batch statistics over the global batch instead of each rank's share."""
    deterministic: bool
    """Only deterministic kernels; an operation without one is an error."""
    benchmark: bool
    """Let cuDNN time its kernels and keep the fastest."""
    detect_anomaly: bool
    """Name the operation that made a NaN; slow."""
    enable_progress_bar: bool
    """A bar on rank 0's terminal."""


@settings
class BatchConfig:
    """The global batch is the experiment; how it is spread over ranks is a detail."""

    global_size: Count
    """Samples of one optimizer step over all ranks."""
    micro_size: Count | None
    """Samples of one forward and backward on one rank; null takes the rank's whole share."""
    eval_size: Count
    """Samples of one evaluation batch on one rank."""


@settings
class PerformanceConfig:
    """How the same numbers are computed faster."""

    compile: bool
    """Compile each network with torch.compile."""
    channels_last: bool
    """Image tensors and convolution weights in NHWC memory order."""
    float32_matmul_precision: Literal["highest", "high", "medium"]
    """TF32 or bf16 inside float32 matrix products on GPUs that have them."""
    data_on_device: bool
    """Keep the data set in GPU memory when it takes less than half of what is free."""
    prefetch_batches: Annotated[int, Field(ge=0)]
    """Batches prepared ahead by a background thread."""


@settings
class MonitorConfig:
    """The metric that says which checkpoint is best and when training no longer helps."""

    metric: str
    """Name of a validation metric."""
    mode: Literal["min", "max"]
    """Whether smaller or larger is better."""
    patience: Count | None
    """Evaluations without improvement after which training stops; null never."""
    min_delta: NonNegative
    """Smallest change that counts as improvement."""


@settings
class CheckpointConfig:
    """When the exact state of a run is written."""

    every_n_steps: Count | None
    """Steps between checkpoints; null only at evaluations."""
    at_evaluation: bool
    """Also after each evaluation."""
    keep: Count
    """Newest checkpoints that stay; the best one stays besides."""


@settings
class RunConfig:
    """Where a run's directory stands. A new run goes to <root>/<task>/<name>."""

    root: str
    """Directory that holds all runs."""
    name: str | None
    """Name of the run; null derives <model>-<data>-<hash8>."""
    fresh: bool
    """Start over beside an unfinished run instead of resuming it."""


@settings
class LaunchConfig(Named):
    """How ranks start, find and lose each other."""

    timeout_s: Positive
    """Longest wait in a collective before the run ends, seconds."""
    max_restarts: Annotated[int, Field(ge=0)]
    """How often the ranks are started again, from the newest checkpoint, after one of them has failed."""
    min_nodes: Count | None
    """Fewest nodes that go on training when some are lost; null is trainer.num_nodes."""
    max_nodes: Count | None
    """Most nodes that may join; null is trainer.num_nodes."""
    endpoint: str | None
    """HOST:PORT of one of several nodes, where they find each other; null takes SLURM's first node."""
    interface: str | None
    """Network interface between several nodes, such as ib0; null takes the one that leads to the endpoint."""


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
class SweepConfig(Named):
    """How -m goes through its jobs; every combination of comma-separated values is one."""

    parallel: Count
    """Jobs at a time."""


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
class LoggerConfig(Named):
    """Where curves go beside metrics.jsonl."""


@settings
class NoLogger(LoggerConfig):
    """Only metrics.jsonl."""


@settings
class WandbLogger(LoggerConfig):
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
class OptimizerConfig(Named):
    """How gradients become updates."""

    lr: Positive
    """Peak learning rate."""
    weight_decay: NonNegative
    """Decoupled (AdamW, Muon) or L2 (SGD, Adam) decay of matrices; biases and norms have none."""


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
class SchedulerConfig(Named):
    """The learning rate over the run, as a factor of the optimizer's."""

    warmup_fraction: Fraction
    """Share of all steps in which the rate rises linearly from zero."""


@settings
class DecayConfig(SchedulerConfig):
    """Constant, linear or cosine after the warm-up."""

    final_fraction: Fraction
    """Rate at the end as a share of the peak."""


@settings
class StrategyConfig(Named):
    """How the model is spread over ranks; the members are in `trainer.strategies.config`."""


LOGGERS: dict[str, type[LoggerConfig]] = {"none": NoLogger, "wandb": WandbLogger}
OPTIMIZERS: dict[str, type[OptimizerConfig]] = {
    "sgd": SGDConfig,
    "adam": AdamConfig,
    "adamw": AdamConfig,
    "muon": MuonConfig,
}
SCHEDULERS: dict[str, type[SchedulerConfig]] = {
    "constant": SchedulerConfig,
    "linear": DecayConfig,
    "cosine": DecayConfig,
    "one_cycle": SchedulerConfig,
}
LAUNCHES: dict[str, type[LaunchConfig]] = {"local": LaunchConfig, "slurm": SlurmLaunchConfig}
SWEEPS: dict[str, type[SweepConfig]] = {"grid": SweepConfig, "optuna": OptunaConfig}


@settings
class Config:
    """A whole run. `task`, `model` and `data` are the task's own subclasses."""

    task: TaskConfig
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    strategy: StrategyConfig
    logger: LoggerConfig
    trainer: TrainerConfig
    batch: BatchConfig
    performance: PerformanceConfig
    monitor: MonitorConfig
    checkpoint: CheckpointConfig
    run: RunConfig
    launch: LaunchConfig
    sweep: SweepConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Everything random in a run follows from it."""
    plugins: list[str]
    """Folders outside the repository that each hold a task."""
