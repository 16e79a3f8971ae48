"""Faults planted in a copy of the project, one at a time: the default tests have to notice each.

    python -m benchmarks.planted_faults [NAME...]

Each fault replaces a piece of the source that must occur exactly once, and runs the tests that should fail. A test that
passes in spite of its fault is a survivor. The same tests first run without a fault, where they have to pass. Writes a
dated file under benchmarks/results/ and exits with the number of survivors.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.result_file import surroundings, write_result

HOME = Path(__file__).resolve().parents[1]
RANKS = "tests/distributed/test_ranks_agree.py"
SIGNAL_TO_ONE_RANK = f"{RANKS}::test_a_signal_to_one_rank_stops_all_at_one_step"
METRICS = "tests/unit/test_metrics.py::test_throughput_is_that_of_a_known_clock"
AVERAGING = "tests/unit/test_averaging.py"
SYNC = "tests/unit/test_sync.py"
QUICK = "tests/distributed/test_strategies_quick.py"


@dataclass(frozen=True)
class Fault:
    """file: of the project. old: replaced by new. test: of the default suite, which has to fail."""

    file: str
    old: str
    new: str
    test: str


FAULTS = {
    "stop flag of ranks above 0 ignored": Fault(
        "trainer/faults/stop.py",
        "self.agreement.reached(self.requested)",
        "self.agreement.reached(self.requested and int(__import__('os').environ.get('RANK', '0')) == 0)",
        SIGNAL_TO_ONE_RANK,
    ),
    "stop flag not reduced over ranks": Fault(
        "trainer/collectives.py",
        "self.work = dist.all_reduce(self.flag, async_op=True)",
        "self.work = dist.all_reduce(self.flag.clone(), async_op=True)",
        SIGNAL_TO_ONE_RANK,
    ),
    "exit code 75 of a joined rank turned into 0": Fault(
        "trainer/verbs/fit.py",
        "create_stop_file() else EXIT_STOPPED",
        "create_stop_file() else EXIT_DONE",
        "tests/distributed/test_torchrun.py::test_ranks_of_srun_stop_with_exit_code_75",
    ),
    "filler rows counted in CNN evaluation": Fault(
        "tasks/cnn/module.py",
        "logits = self.model(images.to(self.dtype))[: batch.num_valid].float()\n"
        "        labels = batch.labels[: batch.num_valid]",
        "logits = self.model(images.to(self.dtype)).float()\n        labels = batch.labels",
        "tests/tasks/cnn/test_training.py::test_evaluation_of_three_ranks_is_that_of_one",
    ),
    "texts cut at 64 tokens whatever max_length": Fault(
        "trainer/data/texts/tokenization.py",
        "        truncation=True,\n        max_length=max_length,",
        "        truncation=True,\n        max_length=min(64, max_length),",
        "tests/unit/test_tokens_split.py::test_texts_are_cut_at_the_length_that_is_asked_for",
    ),
    "wrong sum of the doctor not reported": Fault(
        "trainer/verbs/doctor/rank.py",
        "if wrong.item():",
        "if False:",
        "tests/unit/test_doctor.py::test_a_wrong_sum_is_a_failure",
    ),
    "best forgotten on resume": Fault(
        "trainer/checkpoint/callback.py",
        "self.best = self.saved_best = [(value, step) for value, step in saved if step is not None]",
        "self.best = self.saved_best = []",
        "tests/unit/test_best.py::test_the_best_is_remembered_on_resuming",
    ),
    "full disk unnoticed": Fault(
        "trainer/checkpoint/writing.py",
        'return f"{error.filename or staged}: {error.strerror or error}"',
        "return None",
        "tests/faults/test_storage.py::test_a_full_disk_stops_the_run_which_goes_on_once_there_is_space",
    ),
    "rank 0 writes all that is not sharded": Fault(
        "trainer/checkpoint/shards.py",
        "elif number % world_size == rank:",
        "elif rank == 0:",
        "tests/unit/test_shards.py::test_ranks_divide_what_all_of_them_hold",
    ),
    "early stopping always minimises": Fault(
        "trainer/engine/build.py",
        "mode=monitor.mode,",
        'mode="min",',
        "tests/unit/test_best.py::test_patience_counts_evaluations_without_improvement",
    ),
    "metric lines beyond the checkpoint kept": Fault(
        "trainer/run/metrics_file.py",
        "complete = path.read_bytes()[:num_bytes].rfind",
        "complete = path.read_bytes().rfind",
        "tests/unit/test_resume.py::test_a_kill_changes_nothing",
    ),
    "identity without gradient clipping": Fault(
        "trainer/config/identity.py",
        '        "trainer.enable_progress_bar",\n',
        '        "trainer.enable_progress_bar",\n        "trainer.gradient_clip_val",\n',
        "tests/unit/test_identity.py::test_what_decides_weights_or_numbers_is_in_the_identity",
    ),
    "--no-requeue always": Fault(
        "trainer/launch/submit.py",
        '"--requeue" if launch.requeue else "--no-requeue"',
        '"--no-requeue"',
        "tests/unit/test_submit.py::test_the_script_asks_slurm_to_requeue_as_configured",
    ),
    "samples/s doubled": Fault(
        "trainer/observe/metrics.py",
        'totals = {"samples": self.num_samples, **rates}',
        'totals = {"samples": 2 * self.num_samples, **rates}',
        METRICS,
    ),
    "MFU doubled": Fault(
        "trainer/observe/metrics.py",
        'metrics["perf/mfu"] = achieved',
        'metrics["perf/mfu"] = 2 * achieved',
        METRICS,
    ),
    "NumPy's generator not restored": Fault(
        "trainer/generators.py",
        "    np.random.set_state(",
        "    str(",
        "tests/unit/test_resume.py::test_all_generators_are_restored",
    ),
    "Python's generator not restored": Fault(
        "trainer/generators.py",
        "    random.setstate(",
        "    str(",
        "tests/unit/test_resume.py::test_all_generators_are_restored",
    ),
    "all ranks on one random stream": Fault(
        "trainer/engine/build.py",
        "pl.seed_everything(config.seed + world.rank, verbose=False)",
        "pl.seed_everything(config.seed, verbose=False)",
        f"{RANKS}::test_each_rank_has_its_own_random_stream",
    ),
    "rank 0's generators restored on every rank": Fault(
        "trainer/checkpoint/random_state.py",
        "restore_random_state(self.loaded[trainer.global_rank])",
        "restore_random_state(self.loaded[0])",
        SIGNAL_TO_ONE_RANK,
    ),
    "a restart skips an epoch": Fault(
        "trainer/data/module.py",
        "return epochs.processed, done",
        "return epochs.processed + (1 if fit_loop.restarting and not done else 0), done",
        "tests/unit/test_resume.py::test_stopping_after_any_step_changes_nothing",
    ),
    "FSDP2 sums gradients where it should average": Fault(
        "trainer/module.py",
        "return loss_sum * (self.trainer.world_size / batch.num_samples)",
        "scale = self.trainer.world_size if 'FSDP' in type(self.trainer.strategy).__name__ else 1\n"
        "        return loss_sum * (self.trainer.world_size / batch.num_samples) * scale",
        QUICK,
    ),
    "DeepSpeed clips at its default norm of 1": Fault(
        "trainer/config/deepspeed.py",
        "config.trainer.gradient_clip_val or 0.0",
        "config.trainer.gradient_clip_val or 1.0",
        QUICK,
    ),
    "the average is not saved as the weights": Fault(
        "trainer/callbacks/averaging.py",
        'checkpoint["state_dict"] = {**state, **self.averages}',
        'checkpoint["state_dict"] = state',
        f"{AVERAGING}::test_it_is_what_is_evaluated_and_exported",
    ),
    "the weights themselves are evaluated, not their average": Fault(
        "trainer/callbacks/averaging.py",
        "        _copy(self.averages, tensors)\n",
        "",
        f"{AVERAGING}::test_it_is_what_is_evaluated_and_exported",
    ),
    "the number of averaged weights is forgotten on resume": Fault(
        "trainer/callbacks/averaging.py",
        'self.num_averaged = saved["num_averaged"]',
        "self.num_averaged = 1",
        f"{AVERAGING}::test_a_killed_run_resumes_bit_for_bit",
    ),
    "the content of init.from is not in the identity": Fault(
        "trainer/config/identity.py",
        "sha256:{init.sha256}",
        "sha256",
        "tests/unit/test_init.py::test_the_identity_is_the_content_of_the_file",
    ),
    "a stored run imports the user's own parts": Fault(
        "trainer/parts.py",
        "if target not in _trusted:",
        "if False:",
        "tests/unit/test_own_parts.py::test_a_stored_run_imports_nothing_by_itself",
    ),
    "a failed sweep job marked finished": Fault(
        "trainer/verbs/sweep/local.py",
        '"stopped" if code == EXIT_STOPPED else "failed"',
        '"stopped" if code == EXIT_STOPPED else "finished"',
        "tests/unit/test_sweep.py::test_a_job_is_recorded_as_it_ended",
    ),
    "steps that W&B's server lacks not uploaded at a resume": Fault(
        "trainer/observe/wandb.py",
        "upload_rows(run, record.directory, finished=False)",
        "None",
        f"{SYNC}::test_an_online_run_that_was_killed_has_each_step_once",
    ),
    "W&B's step left to count calls": Fault(
        "trainer/observe/wandb.py",
        "self.run.log(self.row, step=self.step, commit=True)",
        "self.run.log(self.row)",
        f"{SYNC}::test_an_online_run_that_was_killed_has_each_step_once",
    ),
    "run id of W&B's agent not recorded": Fault(
        "trainer/observe/wandb_run.py",
        "    record.update(wandb_id=agents)",
        "    pass",
        f"{SYNC}::test_the_agent_of_a_sweep_finds_its_run",
    ),
}


def main() -> int:
    """Returns: number of faults that no test has noticed."""
    chosen = sys.argv[1:] or list(FAULTS)
    rows, survivors = [], 0
    with tempfile.TemporaryDirectory() as place:
        copy = copy_of_the_project(Path(place))
        tests = sorted({FAULTS[name].test for name in chosen})
        if run_tests(copy, tests) != 0:
            print("the tests fail without a fault", file=sys.stderr)
            return len(chosen)
        for name in chosen:
            fault, start = FAULTS[name], time.perf_counter()
            caught = plant_and_test(copy, fault)
            survivors += not caught
            print(f"{'caught' if caught else 'SURVIVED'}: {name} ({time.perf_counter() - start:.0f} s)", flush=True)
            rows.append(f"| {name} | `{fault.test}` | {'caught' if caught else '**survived**'} |")
    lines = [
        f"# Planted faults, {datetime.date.today()}",
        "",
        "    python -m benchmarks.planted_faults",
        "",
        f"{len(rows)} faults, {survivors} survived. Each test is in the default suite and passes without the fault.",
        "",
        "| fault | test | result |",
        "| --- | --- | --- |",
        *rows,
        "",
        *surroundings("no GPU", "torch", "pytorch-lightning", "pytest"),
        "",
    ]
    write_result("planted-faults", "\n".join(lines))
    return survivors


def copy_of_the_project(place: Path) -> Path:
    """The tracked files, so that a fault never stands in the working tree."""
    listed = subprocess.run(["git", "-C", str(HOME), "ls-files", "-z"], capture_output=True, text=True, check=True)
    copy = place / "project"
    for name in filter(None, listed.stdout.split("\0")):
        if (HOME / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(HOME / name, copy / name)
    return copy


def plant_and_test(copy: Path, fault: Fault) -> bool:
    """Whether the test fails with the fault. Raises: ValueError: the source has changed, so the fault does not fit."""
    file = copy / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(f"{fault.file} holds {text.count(fault.old)} times: {fault.old}")
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    try:
        # 1 is a failed test; any other code would be an error of the run itself.
        return run_tests(copy, [fault.test]) == 1
    finally:
        file.write_text(text, encoding="utf-8")


def run_tests(copy: Path, tests: list[str]) -> int:
    """Returns: pytest's exit code."""
    chosen = ["-m", "not slow and not long", *tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    if done.returncode > 1:
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
