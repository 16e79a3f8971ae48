"""A run directory as a run of Weights & Biases: its start, rows of metrics with pictures and tables, and artifacts."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas
import wandb

from trainer.config.loggers import WandbLoggerConfig
from trainer.config.secrets import redact_words, refer_to_environment
from trainer.run.files import MODEL_FILE, PROFILE_DIR, REPORT_FILE
from trainer.run.media import find_pictures, find_tables, section_name
from trainer.run.metrics_file import metric_rows
from trainer.run.record import Record

log = logging.getLogger(__name__)

MAX_TABLE_ROWS = 1000
# In wandb's own folder of an attempt, of which the server has everything.
UPLOADED = "uploaded"
LOSSES = ("train/loss", "val/loss")
# Files and folders that are artifacts, by the type that they have in W&B.
ARTIFACTS: Mapping[str, str] = {"model": MODEL_FILE, "report": REPORT_FILE, "profile": PROFILE_DIR}


def start_run(
    config: WandbLoggerConfig,
    mapping: Mapping[str, Any],
    record: Record,
    directory: Path,
    online: bool,
    **settings: Any,
) -> wandb.Run:
    """Start W&B's run of a run directory, or continue it.

    Args: mapping: the configuration as written to config.yaml, secrets as references. directory: for wandb's own files.
        settings: more of wandb.Settings. Raises: wandb.Error: the server refuses the key or the run.
    """
    # The run's place is printed at the end; wandb's own banner would break the progress bar.
    os.environ.setdefault("WANDB_SILENT", "true")
    # Its reports about itself go to the same server, and hold up the end of the process where that does not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        with _redacted_command_line(), _no_questions():
            run = wandb.init(
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=[refer_to_environment(tag) for tag in config.tags],
                notes=refer_to_environment(config.notes or "") or None,
                name=record.directory.resolve().name,
                id=_wandb_id(record),
                resume="allow",
                # Absolute: the files are written by wandb's service, which keeps the directory it was started in.
                dir=str(directory.resolve()),
                mode="online" if online else "offline",
                config=dict(mapping),
                # The record has the commit; uncommitted changes may hold what is not meant to be shared.
                settings=wandb.Settings(console="off", silent=True, save_code=False, disable_code=True, **settings),
            )
    except Exception:
        # Its service holds the id of a run that it could not start, and refuses a second try. Or it is gone.
        with suppress(Exception):
            wandb.teardown()
        raise
    _define_summaries(run, mapping.get("monitor") or {})
    return run


def _wandb_id(record: Record) -> str:
    """The id in the record, so that a resumed run continues its curves. Under `wandb agent` it becomes the agent's,
    since the sweep waits for a run of that id."""
    agents, recorded = os.environ.get("WANDB_RUN_ID"), record.read()["wandb_id"]
    if agents is None or "WANDB_SWEEP_ID" not in os.environ or agents == recorded:
        return recorded
    record.update(wandb_id=agents)
    return agents


@contextmanager
def _redacted_command_line() -> Iterator[None]:
    """wandb records sys.argv by itself and has no setting against it alone."""
    before = sys.argv
    sys.argv = redact_words(before)
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _no_questions() -> Iterator[None]:
    """Without a key wandb asks for one where there is a terminal, unless it is silent, and a run would wait for it."""
    before = sys.stdin
    with open(os.devnull) as nothing:  # noqa: PTH123 - no file
        sys.stdin = nothing
        try:
            yield
        finally:
            sys.stdin = before


def _define_summaries(run: wandb.Run, monitor: Mapping[str, Any]) -> None:
    """The summary has the best value beside the last one, of losses and of the metric that chooses the weights.

    Not in a sweep of W&B: its search compares the history of a metric with the summary, where it takes no mapping.
    """
    if run.sweep_id is not None:
        return
    for losses in LOSSES:
        run.define_metric(f"{losses}*", summary="min,last")
    if monitor:
        run.define_metric(monitor["metric"], summary=f"{monitor['mode']},last")


def finish_run(run: wandb.Run, run_dir: Path, exit_code: int) -> None:
    """End W&B's run, with the summary of all attempts: a resumed run of wandb finds the best of its own rows only."""
    if run.sweep_id is None:
        monitor = dict(run.config).get("monitor") or {}
        run.summary.update(_summaries(run_dir, monitor.get("metric"), monitor.get("mode", "min")))
    run.finish(exit_code=exit_code)


def _summaries(run_dir: Path, monitored: str | None, mode: str) -> dict[str, dict[str, float]]:
    values: dict[str, list[float]] = {}
    for row in metric_rows(run_dir).values():
        for name, value in row.items():
            if (name.startswith(LOSSES) or name == monitored) and not math.isnan(value):
                values.setdefault(name, []).append(value)
    modes = {name: mode if name == monitored else "min" for name in values}
    best = {"min": min, "max": max}
    return {name: {modes[name]: best[modes[name]](found), "last": found[-1]} for name, found in values.items()}


def upload_rows(run: wandb.Run, run_dir: Path, *, finished: bool, growing: bool = False) -> tuple[int, int]:
    """Log the rows of all steps after the last one that the server has, with the pictures of each step.

    Args: finished: the last row gets the pictures and tables of the whole run. growing: the run is training, and may
        not have logged all of its last step.
    Returns: (rows sent, rows of the run).
    """
    rows: dict[int, dict[str, Any]] = {**metric_rows(run_dir)}
    if growing and rows:
        rows.pop(max(rows))
    last = max(rows, default=-1)
    for picture in find_pictures(run_dir):
        # A later one was drawn after the checkpoint at which the run goes on, and will be drawn again.
        if picture.step is not None and run.starting_step <= picture.step <= last:
            media = _media(picture.path)
            if media is not None:
                rows.setdefault(picture.step, {})[section_name(picture.path, run_dir)] = media
    missing = sorted(step for step in rows if step >= run.starting_step)
    if finished and missing:
        rows[missing[-1]] |= files_of_run(run_dir)
    for step in missing:
        run.log(rows[step], step=step, commit=True)
    return len(missing), len(rows)


def upload_pictures(run: wandb.Run, run_dir: Path) -> None:
    """Upload the pictures and tables again that attempts have logged which could not send everything.

    The server has the rows that name them, perhaps without the files, and takes no other row of the same step.
    """
    own = Path(run.dir).resolve()
    for folder in run_dir.glob("wandb/run-*"):
        files = (folder / "files").resolve()
        if (folder / UPLOADED).exists() or files == own:
            continue
        for path in sorted(files.glob("media/**/*")):
            if path.is_file():
                run.save(str(path), base_path=str(files), policy="now")


def mark_as_uploaded(run_dir: Path) -> None:
    """Record that the server has what the attempts so far have logged."""
    for folder in run_dir.glob("wandb/run-*"):
        (folder / UPLOADED).touch()


def files_of_run(run_dir: Path) -> dict[str, Any]:
    """Pictures that belong to no single step, and tables, by their names in W&B."""
    pictures = [each.path for each in find_pictures(run_dir) if each.step is None]
    files = {section_name(path, run_dir): _media(path) for path in [*pictures, *find_tables(run_dir)]}
    return {name: media for name, media in files.items() if media is not None}


def _media(path: Path) -> list[wandb.Image] | wandb.Table | None:
    """A file as W&B shows it; None, and a line in the log, where it is damaged: it must not end the run."""
    try:
        if path.suffix == ".csv":
            return _table(pandas.read_csv(path, nrows=MAX_TABLE_ROWS))
        if path.suffix == ".jsonl":
            return _table(pandas.read_json(path, lines=True, nrows=MAX_TABLE_ROWS))
        # A list, as Lightning logs images: W&B shows a key of one type only.
        return [wandb.Image(str(path))]
    except (OSError, ValueError) as error:
        log.warning("W&B does not get %s: %s", path, error)
        return None


def _table(rows: pandas.DataFrame) -> wandb.Table:
    # An empty cell is NaN in pandas, which wandb does not take among texts.
    return wandb.Table(dataframe=rows, allow_mixed_types=True)


def run_artifacts(run: wandb.Run, run_dir: Path) -> list[wandb.Artifact]:
    """The final model, the report and the profile, where they are."""
    artifacts = []
    for kind, file in ARTIFACTS.items():
        path = run_dir / file
        if not path.exists():
            continue
        artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
        artifacts.append(artifact)
    return artifacts


def log_artifacts(run: wandb.Run, artifacts: list[wandb.Artifact]) -> None:
    """Upload artifacts; the server keeps one of the same content."""
    for artifact in artifacts:
        run.log_artifact(artifact)
