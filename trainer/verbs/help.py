"""The verb help, and --help of every verb. The texts stand here so that they are printed without loading the verbs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import EXIT_DONE, UserError, nearest
from trainer.task import HOME, find_tasks
from trainer.verbs.bench.table import BENCHMARKS

OPTIONS = """\
Options:
  --cfg job            print the composed configuration and exit; with --package KEY only that node
  --config-dir DIR     add a folder with groups of your own, such as DIR/experiment/mine.yaml
  -m, --multirun       one run for each combination of comma-separated values
  -h, --help           this text"""


@dataclass(frozen=True)
class VerbHelp:
    """What --help prints of a verb.

    summary: one line. usage: the command without `trainer`. arguments: lines about arguments and options.
    keys: text about configuration keys, given the overrides on the command line. examples: commands.
    """

    summary: str
    usage: str
    arguments: str
    examples: Sequence[str]
    keys: Callable[[Sequence[str]], str] | None = None

    def text(self, verb: str, overrides: Sequence[str]) -> str:
        """All of it."""
        parts = [f"{verb}: {self.summary}\n\nusage: python -m trainer {self.usage}", self.arguments]
        parts += ["Examples:\n" + "\n".join(f"  python -m trainer {example}" for example in self.examples)]
        parts += [self.keys(overrides)] if self.keys is not None else []
        return "\n\n".join(part for part in parts if part)


def help_verb(words: Sequence[str]) -> int:
    """Print the help of the verb that the words name, or the overview. Returns: exit code. Raises: UserError."""
    names = [word for word in words if "=" not in word and not word.startswith("-")]
    if not names:
        return print_help(None, [])
    if len(names) > 1 or names[0] not in VERB_HELP:
        raise UserError(f"help {' '.join(names)}: no such verb; {nearest(names[0], list(VERB_HELP))}")
    return print_help(names[0], [word for word in words if word != names[0]])


def print_help(verb: str | None, words: Sequence[str]) -> int:
    """Print the help of a verb, or the overview. Args: words: the command line without the verb. Returns: exit code."""
    overrides = [word for word in words if word not in ("-h", "--help")]
    if verb == "bench" and overrides and overrides[0] in BENCHMARKS:
        print(BENCHMARKS[overrides[0]].text(overrides[0]))
        return EXIT_DONE
    # `trainer task=bert --help` asks for the keys of a training run.
    verb = verb or ("fit" if overrides else None)
    print(_overview() if verb is None else VERB_HELP[verb].text(verb, overrides))
    return EXIT_DONE


def _overview() -> str:
    """Verbs, and the members of every configuration group."""
    verbs = "\n".join(f"  {name:<11} {each.summary}" for name, each in VERB_HELP.items())
    lines = [
        "usage: python -m trainer [VERB] [KEY=VALUE ...]",
        "",
        "Without a verb it trains. The same command resumes an unfinished run.",
        "",
        "  python -m trainer task=cnn                     train LeNet-5 on embedded digits",
        "  python -m trainer task=cnn trainer.devices=2   the same curve on two ranks",
        "  python -m trainer experiment=NAME              a full recipe from conf/experiment/",
        "  python -m trainer -m task=cnn optimizer.lr=0.1,0.3   a sweep",
        "  python -m trainer task=bert debug=fdr          one step of everything, and nothing kept",
        "",
        "Every key with its default and unit is in docs/reference.md, and what Lightning users type in",
        "docs/from_lightning.md. print_config=true prints the composed configuration and trains.",
        "",
        f"Verbs (python -m trainer VERB --help describes each):\n{verbs}",
        "",
        OPTIONS,
        "",
        "Groups (GROUP=MEMBER):",
    ]
    for group in sorted((HOME / "conf").iterdir()):
        if group.is_dir():
            lines.append(f"  {group.name}={' '.join(sorted(file.stem for file in group.glob('*.yaml')))}")
    return "\n".join(lines)


def _configuration_keys(words: Sequence[str]) -> str:
    """The keys of the configuration that the words compose."""
    from trainer.config.compose import chosen_members, compose_mapping, typed
    from trainer.config.describe import describe_config
    from trainer.verbs.prepare import take_options

    options, overrides = take_options(words)
    config, _ = typed(compose_mapping(overrides, options.config_dirs), chosen_members(overrides))
    chosen = f"task={config.task.name} model={config.model.name} data={config.data.name}"
    chosen += f" optimizer={config.optimizer.name} scheduler={config.scheduler.name} strategy={config.strategy.name}"
    head = f"Keys with {chosen} (name other members beside --help to see theirs):"
    return f"{head}\n\n{describe_config(config)}"


def _predict_arguments(words: Sequence[str]) -> str:
    """The arguments of every task that predicts; of a run's task only, where run=DIR is among the words."""
    from trainer.config.describe import describe_keys, keys_of
    from trainer.run.stored_config import read_stored_config

    runs = [word.removeprefix("run=") for word in words if word.startswith("run=")]
    plugins = [word for word in words if word.startswith("plugins=")]
    tasks = [read_stored_config(Path(runs[0]), plugins).task] if runs else list(find_tasks().values())
    blocks = []
    for task in tasks:
        schema = task.predict_arguments
        if schema is None:
            continue
        fields = schema.__dataclass_fields__
        defaults = {name: field.default for name, field in fields.items() if name in vars(schema)}
        blocks.append(
            "\n".join([f"Arguments for a run of task={task.name}:", *describe_keys(keys_of(schema), defaults)])
        )
    return "\n\n".join(blocks) or f"A run of task={tasks[0].name} has no predict."


def _serve_keys(words: Sequence[str]) -> str:
    """The arguments of `serve`, with the values that they have by default."""
    from trainer.config.describe import describe_keys, keys_of
    from trainer.serve.config import Limits, ServeConfig

    defaults = {name: field.default for name, field in ServeConfig.__dataclass_fields__.items()}
    limits = list(keys_of(Limits))
    own = [key for key in keys_of(ServeConfig) if key not in limits]
    return "\n".join(["Arguments:", *describe_keys(own, defaults), "", "Limits:", *describe_keys(limits, defaults)])


RUN = "outputs/cnn/NAME"
PLACES = "trainer.devices, trainer.accelerator, trainer.precision, batch.eval_size, launch.* and performance.*"
PLUGINS = """\
  plugins=[FOLDER]     import the task of a plugin; a stored run imports no code by itself, so repeat it here"""

VERB_HELP: Mapping[str, VerbHelp] = {
    "fit": VerbHelp(
        "train a configuration, or resume its unfinished run",
        "[fit] [KEY=VALUE | GROUP=MEMBER ...] [OPTIONS]",
        OPTIONS,
        [
            "task=cnn",
            "task=cnn optimizer=sgd optimizer.lr=0.1 trainer.max_epochs=5",
            "-m task=cnn optimizer.lr=0.001,0.003",
            "task=bert --help",
        ],
        _configuration_keys,
    ),
    "plan": VerbHelp(
        "print what would run: ranks, batch, steps, memory, learning rate",
        "plan [KEY=VALUE | GROUP=MEMBER ...] [--config-dir DIR]",
        "Takes the configuration of a training run (python -m trainer fit --help) and starts nothing.",
        ["plan task=cnn batch.global_size=256", "plan task=bert trainer.devices=8 trainer.accelerator=cuda"],
    ),
    "doctor": VerbHelp(
        "check whether this machine can run a configuration, and print remedies",
        "doctor [KEY=VALUE | GROUP=MEMBER ...] [--json] [--config-dir DIR]",
        "Takes the configuration of a training run (python -m trainer fit --help).\n"
        "  --json               print the findings as JSON\n"
        "Exit code: 0, or 2 where the run would fail.",
        ["doctor task=cnn", "doctor task=bert trainer.devices=8 --json"],
    ),
    "eval": VerbHelp(
        "metrics of a trained model on its own data or on other data",
        "eval run=DIR [checkpoint=NAME] [data=MEMBER data.KEY=VALUE ...] [KEY=VALUE ...]",
        f"""\
Arguments:
  run=DIR              the run's directory
  checkpoint=NAME      best, last, step-N or a path, verified before it is used; without it the run's final weights
  data=MEMBER          another data set of the task, with data.KEY=VALUE as in training; vocabulary, labels and
                       normalisation remain the run's
  KEY=VALUE            {PLACES},
                       trainer.limit_val_batches, trainer.limit_test_batches; other keys have no effect and are
                       refused
  --config-dir DIR     a folder with data sets of your own, such as DIR/data/mine.yaml
{PLUGINS}

Results go to DIR/eval.json; of other weights, other data or other numeric settings to a file of their own,
DIR/eval-DATA-CHECKPOINT-HASH.json.""",
        [f"eval run={RUN}", f"eval run={RUN} checkpoint=last", f"eval run={RUN} data=image_folder data.path=photos"],
    ),
    "predict": VerbHelp(
        "apply a trained model to new input",
        "predict run=DIR [ARGUMENT=VALUE ...] [KEY=VALUE ...]",
        f"""\
Arguments:
  run=DIR              the run's directory
  KEY=VALUE            {PLACES}
{PLUGINS}""",
        ["predict run=outputs/bert/NAME input=texts.csv", "predict run=outputs/dcgan/NAME n=64 seed=1"],
        _predict_arguments,
    ),
    "export": VerbHelp(
        "write a trained model in formats that need no training code, and prove them equal",
        "export run=DIR [format=NAME[,NAME ...]] [deploy=NAME[,NAME ...]] [KEY=VALUE ...]",
        f"""\
Arguments:
  run=DIR              the run's directory
  format=NAME,...      safetensors, torch_export, aot_inductor, onnx, onnx_fp16, onnx_int8, tensorrt
  deploy=NAME,...      hub, triton, docker, kubernetes: written to DIR/deploy/NAME from these formats, or without
                       format= from the exports that are there
  KEY=VALUE            data.*, model.path: where the data or the encoder is now; trainer.limit_test_batches,
                       trainer.limit_val_batches, batch.eval_size
{PLUGINS}

Each format goes to DIR/export/NAME. It is compared with the run's network on the run's evaluation data, over several
batch sizes and lengths; one that differs by more than its tolerance is not written, and what was there before remains.
Exit code: 0, or 1 where a format differs. docs/exporting.md has the tolerances, and how an export is loaded.""",
        [
            f"export run={RUN} format=onnx",
            "export run=outputs/bert/NAME format=safetensors,onnx,onnx_int8",
            f"export run={RUN} deploy=docker,kubernetes",
        ],
    ),
    "serve": VerbHelp(
        "answer requests over HTTP with an exported model",
        "serve run=DIR [KEY=VALUE ...]   or   serve export=DIR [KEY=VALUE ...]",
        """\
POST /predict takes JSON or images, GET / is a page to try the model, GET /docs lists all routes. SIGTERM and Ctrl-C end
it when everything that was accepted is answered. docs/serving.md says more.""",
        ["serve run=outputs/bert/NAME", f"serve export={RUN}/export/onnx port=0 max_batch=64 api_key_file=key.txt"],
        _serve_keys,
    ),
    "convert": VerbHelp(
        "write the weights of a checkpoint as safetensors",
        "convert run=DIR [checkpoint=NAME] [out=FILE.safetensors]   or   convert checkpoint=PATH out=FILE.safetensors",
        """\
Arguments:
  run=DIR              the run's directory
  checkpoint=NAME      best (default), last, step-N or a path; verified before it is used
  out=FILE             file to write, which ends in .safetensors; without it DIR/model-NAME.safetensors

DIR/model.safetensors, which holds the final weights of the run, is never overwritten.""",
        [f"convert run={RUN} checkpoint=last", f"convert checkpoint={RUN}/checkpoints/last out=last.safetensors"],
    ),
    "report": VerbHelp(
        "write one HTML page about a run, or about several compared",
        "report run=DIR [run=DIR ...] [out=FILE]   or   report --serve [root=DIR] [port=N]",
        """\
Arguments:
  run=DIR              a run's directory; several are compared
  out=FILE             the page; without it DIR/report.html, or comparison.html for several runs
  --serve              serve a table of all runs and their pages on 127.0.0.1, updated while runs train
  root=DIR             with --serve: the directory of runs, outputs by default
  port=N               with --serve: the port; 0, the default, takes a free one""",
        [f"report run={RUN}", "report --serve root=outputs"],
    ),
    "sync": VerbHelp(
        "upload a run to Weights & Biases",
        "sync run=DIR [run=DIR ...]",
        """\
Arguments:
  run=DIR              the run's directory; several are uploaded one after the other

All attempts become one W&B run under the id in run.json: every logged step once, and only the steps that the server
does not have. Pictures, tables of predictions, report.html, profile/ and the model go with them. It needs a key (wandb
login, or WANDB_API_KEY) and a server (WANDB_BASE_URL, https://api.wandb.ai without it). docs/wandb.md says more.""",
        [f"sync run={RUN}"],
    ),
    "dashboard": VerbHelp(
        "make a workspace of W&B with the charts of the report",
        "dashboard run=DIR   or   dashboard project=NAME [root=DIR]",
        """\
Arguments:
  run=DIR              the run's directory; the workspace shows this run
  project=NAME         the workspace shows all runs of this W&B project
  root=DIR             with project: the directory of runs whose metrics get panels, outputs by default

It is written to DIR/dashboard.json, or dashboard-NAME.json, and saved on the server where there are a key and a route;
a second call replaces it. It needs the package wandb-workspaces (pip install 'hydra-lightning-trainer[dashboard]').""",
        [f"dashboard run={RUN}", "dashboard project=trainer"],
    ),
    "bench": VerbHelp(
        "measure one way of doing the work against another",
        "bench NAME [OPTION=VALUE ...] [KEY=VALUE | GROUP=MEMBER ...]",
        "Benchmarks (python -m trainer bench NAME --help describes each):\n"
        + "\n".join(f"  {name:<11} {each.compares}" for name, each in BENCHMARKS.items())
        + "\n\nAll sides are measured in interleaved rounds, and what they compute is compared.\n"
        "KEY=VALUE and GROUP=MEMBER are words of a training run.",
        [f"bench {each.examples[0]}" for each in BENCHMARKS.values()],
    ),
    "completion": VerbHelp(
        "print a script that completes verbs, groups and keys in bash",
        'completion   as in   eval "$(trainer completion)"',
        "",
        ["completion >> ~/.bashrc"],
    ),
    "help": VerbHelp("this overview, or the help of a verb", "help [VERB]", "", ["help eval"]),
}
