"""The schema: type, unit and meaning of every configuration value.

Values live in conf/, so no field has a default. `groups.py` has the members of each Hydra group; a task adds the schema
of its `task`, `model` and `data` nodes in `tasks/<name>/config.py`; `parsing.py` builds these classes from a mapping.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Generic, Literal, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypeVar

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
# Lightning reads an int as a number of batches and a float as a share of them.
BatchLimit = Annotated[int, Field(ge=0)] | Fraction


def _is_duration(text: str) -> str:
    if not re.fullmatch(r"\d+:([01]\d|2[0-3]):[0-5]\d:[0-5]\d", text):
        raise ValueError("must be DD:HH:MM:SS, as in 00:12:30:00 for twelve and a half hours")
    return text


Duration = Annotated[str, AfterValidator(_is_duration)]


def key_of(field: str) -> str:
    """The key of a field: a trailing underscore only keeps its name apart from Python's keywords."""
    return field.removesuffix("_")


STRICT = ConfigDict(
    extra="forbid",
    strict=True,
    use_attribute_docstrings=True,
    allow_inf_nan=False,
    alias_generator=key_of,
    validate_by_name=True,
    validate_by_alias=True,
)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen, strictly typed node of the configuration: unknown keys and wrong types are refused."""
    return pydantic_dataclass(cls, config=STRICT, kw_only=True, frozen=True)  # pyright: ignore[reportReturnType]


@settings
class Named:
    """A node whose fields depend on which member of a Hydra group was chosen."""

    # Fields that say where or how something is computed, not what: runs that differ only in these are the same run.
    NOT_IDENTITY: ClassVar[frozenset[str]] = frozenset()

    name: str
    """Member of the group."""


@settings
class TaskConfig(Named):
    """Settings of a task besides model and data; each task extends it."""

    # Fields that an evaluation reads, which the verb `eval` may therefore change.
    EVALUATION: ClassVar[frozenset[str]] = frozenset()
    # Fields that confirm a file which is code; for a stored run the user's words have to repeat them.
    CONFIRMS_CODE: ClassVar[frozenset[str]] = frozenset()


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
    """Device type; auto takes the visible GPUs, or the CPU if there are none."""
    devices: Count | Literal["auto"]
    """Ranks on this node; auto is every visible GPU, or one process on the CPU."""
    num_nodes: Count
    """Nodes of the job, each with `devices` ranks."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true"]
    """Numeric type of weights and arithmetic."""
    max_epochs: Count | None
    """Epochs, passes over the training set; null if only max_steps ends training."""
    max_steps: Annotated[int, Field(ge=-1)]
    """Optimizer steps; -1 if only max_epochs ends training."""
    max_time: Duration | None
    """DD:HH:MM:SS of training, evaluations included and over all attempts, after which it ends; null is no limit."""
    gradient_clip_val: Positive | None
    """Largest norm of the global gradient, per optimizer; null disables clipping."""
    log_every_n_steps: Count
    """Steps between two records of training metrics."""
    val_check_interval: Count | Annotated[float, Field(gt=0.0, le=1.0)]
    """Steps (int) or share of an epoch (float) between evaluations."""
    check_val_every_n_epoch: Count | None
    """Epochs between evaluations; null counts val_check_interval across epochs."""
    limit_train_batches: BatchLimit
    """Steps (int) or share (float) of each epoch to train on."""
    limit_val_batches: BatchLimit
    """Batches of batch.eval_size samples over all ranks (int), or share of the validation set (float), to evaluate."""
    limit_test_batches: BatchLimit
    """Batches of batch.eval_size samples over all ranks (int), or share of the test set (float), to evaluate."""
    num_sanity_val_steps: Annotated[int, Field(ge=0)]
    """Validation batches to run before training starts, as a check."""
    fast_dev_run: bool | Annotated[int, Field(ge=0)]
    """Try everything with this many steps, evaluation and test batches (true is 1), and keep nothing."""
    overfit_batches: BatchLimit
    """Steps (int) or share (float) of the first epoch to train on in every epoch; limits validation too; 0 is off."""
    sync_batchnorm: bool
    """Batch statistics over the global batch instead of each rank's share."""
    deterministic: bool
    """Use only deterministic kernels; an operation without one is an error."""
    benchmark: bool
    """Let cuDNN time its kernels and use the fastest."""
    detect_anomaly: bool
    """Name the operation that produced a NaN; slow."""
    enable_progress_bar: bool
    """Show a progress bar on rank 0's terminal."""


@settings
class BatchConfig:
    """The global batch defines the experiment; how it is split over ranks does not."""

    global_size: Count
    """Samples of one optimizer step, over all ranks."""
    micro_size: Count | Literal["auto"] | None
    """Samples of one forward and backward pass on one rank; null takes the rank's whole share, auto as much of it as
    fits into memory."""
    eval_size: Count
    """Samples of one evaluation batch on one rank."""

    @property
    def fixed_micro_size(self) -> int | None:
        """`micro_size`, and None where it does not limit a rank's share."""
        return None if self.micro_size == "auto" else self.micro_size


@settings
class PerformanceConfig:
    """Settings that change the speed of a run, not its result."""

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
    """The metric that decides which checkpoint is best and when to stop early."""

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
    """When checkpoints are written."""

    every_n_steps: Count | None
    """Steps between checkpoints; null writes them only at evaluations."""
    every_s: Positive | None
    """Seconds between checkpoints, besides the other cadences; null is none."""
    at_evaluation: bool
    """Write a checkpoint after each evaluation."""
    keep: Count
    """Number of newest checkpoints to keep; the best ones are kept as well."""
    keep_best: Count
    """Number of checkpoints of the best evaluations to keep."""
    keep_every_h: Positive | None
    """Hours from one checkpoint that is kept for good to the next; null keeps none for good."""
    format: Literal["full", "sharded"]
    """Full tensors, gathered on and written by rank 0; or each rank writes its shards, for models that are large."""
    asynchronous: bool
    """Write beside training: a save holds the steps only for a copy of the state in host memory."""
    on_write_error: Literal["stop", "continue"]
    """After a full disk, a lost permission or another error of the storage: stop, or warn, train on and try again."""


@settings
class InitConfig:
    """What a new run starts from; a run that is resumed reads only its own checkpoints. See docs/checkpoints.md."""

    from_: str | None
    """Run, checkpoint or file (.safetensors, .pt, .pth, .ckpt) whose weights the networks start from; optimizer, step
    and schedule start anew. null starts from the model's own weights."""
    ckpt_path: str | None
    """Checkpoint, or run whose last one it is, whose whole state a new run continues from: weights, optimizer, step,
    random numbers. null starts at step 0."""
    strict: bool
    """With init.from: refuse a file unless every tensor matches; false lets input and output layers of another shape
    start anew, and lists what the networks do not have."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """Expected SHA-256 of the file; null accepts any. config.yaml of a run holds that of the file it has started
    from."""


@settings
class RunConfig:
    """The run directory, <root>/<task>/<name>."""

    root: str
    """Directory of all runs."""
    name: str | None
    """Name of the run; null derives <model>-<data>-<hash8>."""
    fresh: bool
    """Start a new run instead of resuming an unfinished one."""
    print_config: bool
    """Print the composed configuration before training; --cfg job prints it without training."""
    record_git_diff: bool
    """Record uncommitted changes of the code in run.json; they may contain what should not be shared."""
    private: bool
    """A new run's directory is for its user alone (mode 0700); false leaves its mode to the umask."""
    report: bool
    """Draw curves.png and write report.html when the run has ended; `report run=DIR` also writes the page later."""


@settings
class LaunchConfig(Named):
    """How ranks are started, and what happens if one fails."""

    timeout_s: Positive
    """Longest wait in a collective before the run fails, seconds."""
    hang_timeout_s: Positive | Literal["auto"] | None
    """Longest step before the ranks are ended with a page that says where each is, seconds; auto is 20 times the
    longest of the last 50 steps, within 60 and timeout_s; null is never."""
    max_restarts: Annotated[int, Field(ge=0)]
    """Restarts of all ranks from the newest checkpoint after one has failed, at most."""
    min_nodes: Count | None
    """Fewest nodes on which training continues when some are lost; null is trainer.num_nodes."""
    max_nodes: Count | None
    """Most nodes that may join; null is trainer.num_nodes."""
    endpoint: str | None
    """HOST:PORT of the node where several nodes rendezvous; null takes SLURM's first node."""
    interface: str | None
    """Network interface between nodes, such as ib0; null takes the one with the route to the endpoint."""


@settings
class FaultsConfig:
    """What a run does when something goes wrong. See docs/faults.md."""

    on_nonfinite: Literal["stop", "skip", "rollback"]
    """At a loss or gradient that is not finite: stop, skip the step's update, or return to the last checkpoint and then
    skip it."""
    max_skipped_steps: Count
    """Steps of a run whose update may be skipped; one more stops the run."""
    loss_spike: Annotated[float, Field(gt=0)] | None
    """Median absolute deviations above the median of a network's last 100 losses; a loss beyond is handled as one that
    is not finite; null is never."""
    verify_replicas_every_n_steps: Count | None
    """Steps between comparisons of the weights of all ranks, bit by bit; null is never."""


@settings
class SweepConfig(Named):
    """How -m runs its jobs, one for each combination of comma-separated values."""

    parallel: Count
    """Number of simultaneous jobs."""


@settings
class LoggerConfig:
    """Where metrics are logged besides metrics.jsonl; the members are in `trainer.config.loggers`."""


@settings
class CallbackConfig:
    """What happens beside the steps of training; the members are in `trainer.config.callbacks`."""


@settings
class OptimizerConfig(Named):
    """The optimizer."""

    lr: Positive
    """Peak learning rate."""
    weight_decay: NonNegative
    """Decoupled (AdamW, Muon) or L2 (SGD, Adam) weight decay of matrices; biases and norms have none."""


@settings
class SchedulerConfig(Named):
    """The learning rate schedule, as a factor of optimizer.lr."""

    warmup_fraction: Fraction
    """Share of all steps in which the learning rate rises linearly from zero."""


@settings
class StrategyConfig(Named):
    """How the model is distributed over ranks; the members are in `trainer.config.strategies`."""


@settings
class ProfilerConfig(Named):
    """What is recorded of a run beyond its account, into profile/; the members are in `trainer.config.profilers`."""


TaskT = TypeVar("TaskT", bound=TaskConfig, default=TaskConfig)
ModelT = TypeVar("ModelT", bound=ModelConfig, default=ModelConfig)
DataT = TypeVar("DataT", bound=DataConfig, default=DataConfig)


@settings
class Config(Generic[TaskT, ModelT, DataT]):
    """A whole run. A task names its own classes: Config[CNNConfig, ResNetConfig, ImageDataConfig]."""

    task: TaskT
    model: ModelT
    data: DataT
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    strategy: StrategyConfig
    profiler: ProfilerConfig
    logger: dict[str, LoggerConfig]
    """By name; see the group logger."""
    callbacks: dict[str, CallbackConfig]
    """By name; see the group callbacks."""
    metrics: dict[str, Any]
    """More metrics of evaluations by name, each an OwnMetricConfig."""
    trainer: TrainerConfig
    batch: BatchConfig
    performance: PerformanceConfig
    monitor: MonitorConfig
    checkpoint: CheckpointConfig
    init: InitConfig
    run: RunConfig
    launch: LaunchConfig
    faults: FaultsConfig
    sweep: SweepConfig
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Seed of all random numbers of a run."""
    plugins: list[str]
    """Folders outside the repository that each contain a task."""
