"""The benchmarks by name, with what --help prints of each: nothing here loads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.bench.rounds import FEWEST_ROUNDS


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    function: "module:function" of this package. compares: one line. checked: how the sides are shown to do the same
    work. options: besides rounds and out, with what they mean. rounds: by default, None where there
    are none. examples: words after `bench`.
    """

    function: str
    compares: str
    checked: str
    examples: Sequence[str]
    options: Mapping[str, str] = field(default_factory=dict)
    rounds: int | None = FEWEST_ROUNDS
    files: str = "result.md, result.png and result.json"
    notes: str = ""

    def text(self, name: str) -> str:
        """What `bench NAME --help` prints."""
        rounds = {"rounds=N": f"interleaved rounds, at least {FEWEST_ROUNDS}; {self.rounds} by default"}
        options = {
            **self.options,
            **(rounds if self.rounds else {}),
            "out=DIR": f"the folder of {self.files}; outputs/bench/... without it",
        }
        lines = [f"bench {name}: {self.compares}", "", f"usage: python -m trainer {self._usage(name)}", ""]
        lines += [f"  {option:<28} {meaning}" for option, meaning in options.items()]
        lines += ["", f"Checked: {self.checked}.", *([self.notes] if self.notes else [])]
        return "\n".join([*lines, "", "Examples:", *(f"  python -m trainer bench {words}" for words in self.examples)])

    def _usage(self, name: str) -> str:
        takes_words = any("task=" in example for example in self.examples)
        return f"bench {name} [OPTION=VALUE ...]" + (" [KEY=VALUE | GROUP=MEMBER ...]" if takes_words else "")


STEPS_OF_RUN = {"steps=N": "steps of a training run, 60 by default; the first third is warm-up and does not count"}
LOSSES = "the losses of the same steps; the largest relative difference is in the table"

BENCHMARKS: Mapping[str, Benchmark] = {
    "scaling": Benchmark(
        "scaling:scaling",
        "speed-up, efficiency and serial fraction of training, inference or data loading on more devices",
        "losses, outputs or loaded samples of all sides",
        [
            "scaling task=cnn trainer.devices=1,2",
            "scaling inference task=bert trainer.devices=1,2",
            "scaling data task=cnn trainer.devices=1,2,4",
            "scaling task=cnn trainer.accelerator=cpu,cuda",
        ],
        {
            "training|inference|data": "first word: what is measured; training without it",
            "trainer.devices=1,2": "the numbers of devices to compare, of which 1 is one",
            "trainer.accelerator=cpu,cuda": "instead: one device of each kind; cpu without it",
            "mode=MODE": "strong (the same global batch), weak (a batch for each device) or both (default)",
            "steps=N": "steps of a training sample, 60 by default",
        },
        files="index.html, scaling.png and result.json",
        notes="It shows where the time of a step goes, and predicts the efficiency of more devices.",
    ),
    "inference": Benchmark(
        "inference:inference",
        "a trained network eager, compiled, in bf16, and as each of its exports, at several batch sizes",
        "the mean magnitude of outputs, and the task's metric beside each time",
        ["inference run=outputs/bert/NAME", "inference run=outputs/cnn/NAME batch=1,64 sides=eager,onnx_int8"],
        {
            "run=DIR": "the run's directory; its exports are in DIR/export, see the verb export",
            "batch=A,B,...": "batch sizes, 1,8,32 by default",
            "sides=A,B,...": "eager, compile, bf16 or names of exports; without it all but safetensors, aot_inductor",
            "calls=N": "forward passes of a sample, 20 by default",
        },
        notes="Preprocessing is on no side. aot_inductor is machine code of the run's directory: name it to run it.",
    ),
    "serve": Benchmark(
        "serve:serve",
        "a server of predictions at rising rates: latency and answers a second, and where it is saturated",
        "every answer is 200, 429 or counted as an error",
        ["serve url=http://127.0.0.1:8000", "serve run=outputs/bert/NAME max_batch=1 seconds=30"],
        {
            "url=URL": "a server that runs; its key is read from TRAINER_SERVE_API_KEY",
            "run=DIR": "starts a server of it, with further words of the verb serve; with url: whose probes are sent",
            "inputs=PATH": "instead of probes: request bodies in FILE.jsonl, an image, or a folder of images",
            "rates=A,B,...": "requests a second; without it half of what one client gets, doubled until saturation",
            "seconds=N": "at each rate, 10 by default",
            "timeout=N": "seconds until a request counts as an error, 10 by default",
        },
        rounds=None,
        files="index.html, result.md, result.png and result.json",
        notes="Requests are sent at their times whether the server keeps up or not; latency counts from these times.",
    ),
    "startup": Benchmark(
        "startup:startup",
        "CPU time of `import trainer`, --help and a user error, against the bare interpreter and `import hydra`",
        "the exit code of each process",
        ["startup"],
        {"starts=N": "processes of a sample, 3 by default"},
    ),
    "overhead": Benchmark(
        "overhead:overhead",
        "a step by the trainer's loop, by the same loop by hand, and by Lightning's automatic optimization",
        "the losses of the first measured steps",
        ["overhead task=cnn model=lenet5 batch.global_size=32", "overhead task=bert model.dropout=0 steps=10"],
        {"steps=N": "steps of a turn, 50 by default"},
        rounds=15,
        notes="All sides compute the task's loss with its metrics; the trainer also logs, accounts for time and draws.",
    ),
    "data": Benchmark(
        "data:data",
        "the task's batches and those of torch's DataLoader, which collates them sample by sample",
        "every value of every batch, by sums weighted by place",
        ["data task=cnn", "data task=bert"],
        {"steps=N": "batches of a pass, 50 by default"},
        rounds=15,
        notes="Decoding, tokenization and augmentation are on no side. Ready samples leave torch only the collation.",
    ),
    "bucketing": Benchmark(
        "bucketing:bucketing",
        "padding and time of a training step on texts, shuffled or grouped by length",
        "the loss of the same texts, without dropout",
        ["bucketing task=bert", "bucketing task=bert data=sst2 data.path=PATH model=minilm"],
        {"steps=N": "training steps of a sample, 10 by default, on batches that stand for an epoch"},
    ),
    "checkpoint": Benchmark(
        "checkpoint:checkpoint",
        "training that saves every N steps, at once, beside training, or at its end only; time of a save and of a load",
        "losses, and the state of the last checkpoint, loaded again",
        ["checkpoint task=bert"],
        {"every=N": "steps between two saves, 5 by default", "steps=N": "steps of a training run, 60 by default"},
    ),
    "ddp": Benchmark(
        "runs:ddp",
        "what communication costs: a step of several ranks with and without the all-reduce of gradients",
        LOSSES,
        ["ddp task=bert trainer.devices=2"],
        {"trainer.devices=N": "ranks, 2 by default", **STEPS_OF_RUN},
        notes="The learning rate is too small to change a weight, so that both sides do the same steps.",
    ),
    "strategies": Benchmark(
        "runs:strategies",
        "a training step and its memory under each strategy",
        LOSSES,
        ["strategies task=bert optimizer=sgd", "strategies task=cnn strategy=ddp,fsdp2 trainer.devices=4"],
        {
            "strategy=A,B,...": "the strategies, first the reference; ddp, fsdp2 and DeepSpeed 1 to 3 without it",
            "trainer.devices=N": "ranks, 2 by default",
            **STEPS_OF_RUN,
        },
        notes="Adam hides a wrong scale of gradients: compare with optimizer=sgd.",
    ),
    "precision": Benchmark(
        "runs:precision",
        "a training step and its memory in each precision",
        f"{LOSSES}; 5 % are tolerated",
        ["precision task=bert", "precision task=cnn model=resnet18 trainer.precision=32-true,bf16-mixed,16-mixed"],
        {
            "trainer.precision=A,B,...": "the precisions, first the reference; 32-true,bf16-mixed without it",
            "trainer.devices=N": "ranks, 1 by default",
            **STEPS_OF_RUN,
        },
    ),
    "compile": Benchmark(
        "runs:compile",
        "a training step with and without torch.compile",
        LOSSES,
        ["compile task=cnn model=resnet18", "compile task=bert steps=240 data.pad_to_multiple_of=32"],
        {"trainer.devices=N": "ranks, 1 by default", **STEPS_OF_RUN},
        notes="Compilation is in the warm-up, whose time is in the table.",
    ),
}
