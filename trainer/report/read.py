"""A run directory as data: record, configuration and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import UserError
from trainer.report.metrics_reader import MetricsReader, Series
from trainer.run.files import CONFIG_FILE, METRICS_FILE, RECORD_FILE
from trainer.run.opening import open_stored_run, read_config_text

Stamps = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True)
class RunData:
    """What a page shows of a run.

    label: unique among the runs of a page. record: run.json. config: config.yaml, references unresolved. series: every
    metric over steps. last_step: of the last complete line. has_torn_line: the file of metrics ends within a line.
    """

    directory: Path
    label: str
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    series: Mapping[str, Series]
    last_step: int
    has_torn_line: bool

    @property
    def monitor(self) -> tuple[str, bool]:
        """The metric that chooses the best weights, and whether larger is better."""
        monitor = mapping_in(self.config, "monitor")
        return str(monitor.get("metric", "")), monitor.get("mode") == "max"

    @property
    def attempts(self) -> list[Mapping[str, Any]]:
        """The attempts of the record, the first one first."""
        return list(self.record.get("attempts") or [])


class RunReader:
    """Reads one run directory again and again; a second reading costs only what has changed."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.metrics = run_dir, MetricsReader(run_dir)
        self.described: tuple[Stamps, Mapping[str, Any], Mapping[str, Any]] | None = None

    def stamps(self) -> Stamps:
        """What changes with any of the files: inode, size and time of each, None for one that is missing."""
        return tuple(_stamp(self.run_dir / name) for name in (RECORD_FILE, CONFIG_FILE, METRICS_FILE))

    def read(self, label: str | None = None) -> RunData:
        """The run as it stands. Raises: UserError: this is no run directory, or one of its files is damaged, or links
        lead out of it.
        """
        stamps = self.stamps()[:2]
        if self.described is None or self.described[0] != stamps:
            self.described = (stamps, read_record(self.run_dir), read_config(self.run_dir))
        self.metrics.refresh()
        return RunData(
            directory=self.run_dir,
            label=label or self.run_dir.resolve().name,
            record=self.described[1],
            config=self.described[2],
            series=self.metrics.series(),
            last_step=self.metrics.last_step,
            has_torn_line=self.metrics.has_torn_line,
        )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def read_record(run_dir: Path) -> Mapping[str, Any]:
    """run.json. Raises: UserError: it is missing or damaged, or as open_stored_run."""
    if not run_dir.is_dir():
        raise UserError(f"run={run_dir}: no such directory")
    record = open_stored_run(run_dir)
    attempts = record.get("attempts")
    if not isinstance(attempts, list) or not all(isinstance(a, dict) for a in attempts) or "status" not in record:
        raise UserError(f"run={run_dir}: {RECORD_FILE} is damaged (no status or no attempts)")
    return record


def read_config(run_dir: Path) -> Mapping[str, Any]:
    """config.yaml. Raises: UserError: it is missing or damaged."""
    try:
        config = yaml.safe_load(read_config_text(run_dir))
    except OSError as error:
        raise UserError(f"run={run_dir}: no readable {CONFIG_FILE} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"run={run_dir}: {CONFIG_FILE} is damaged") from error
    if not isinstance(config, dict):
        raise UserError(f"run={run_dir}: {CONFIG_FILE} is damaged (it holds no configuration)")
    return config


def mapping_in(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested mapping; empty where a run has none."""
    value = values.get(key)
    return value if isinstance(value, Mapping) else {}


def unique_labels(run_dirs: Sequence[Path]) -> list[str]:
    """A short name for each of different directories: its own, with as many parents as it takes to differ."""
    parts = [path.resolve().parts for path in run_dirs]
    length = 1
    while len({names[-length:] for names in parts}) < len(parts):
        length += 1
    return ["/".join(names[-length:]) for names in parts]
