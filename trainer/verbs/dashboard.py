"""The verb dashboard: the charts of the report as a workspace of W&B."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import EXIT_DONE, UserError, nearest
from trainer.report.charts import SECTIONS, SHARE_PREFIX, Section, placed, rank_in_section
from trainer.report.read import RunData, RunReader
from trainer.report.runs import Runs
from trainer.run.files import METRICS_FILE, read_json, write_json
from trainer.verbs.sync import require_server, wandb_settings

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

ARGUMENTS = ("run", "project", "root")
DASHBOARD_FILE = "dashboard.json"


@dataclass(frozen=True)
class Subject:
    """What a dashboard shows: a run, or all runs of a project whose metrics are those of `runs`.

    file: of the workspace. run_id: W&B's id of a single run.
    """

    title: str
    project: str
    entity: str | None
    runs: Sequence[RunData]
    file: Path
    run_id: str | None


def dashboard(words: Sequence[str]) -> int:
    """Write the workspace, and save it on the server where there are a key and a route.

    Args: words: run=DIR, or project=NAME and root=DIR. Returns: exit code. Raises: UserError: a wrong argument, no such
        run or project, the package is not installed, or the server refuses it.
    """
    subject = _subject(_arguments(words))
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "dashboard: the package wandb-workspaces is not installed",
            "pip install 'hydra-lightning-trainer[dashboard]'",
        )
    # Its terminal output would stand beside that of this command.
    os.environ.setdefault("WANDB_SILENT", "true")
    workspace = build_workspace(subject)
    view = _stored_view(subject.file)
    _write(subject, workspace, view)
    print(subject.file)
    try:
        require_server("dashboard")
    except UserError as reason:
        print(f"not saved on a server: {reason.lines[0].removeprefix('dashboard: ')}")
        return EXIT_DONE
    print(_save(subject, workspace, view))
    return EXIT_DONE


def _arguments(words: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in ARGUMENTS:
            raise UserError(f"{word}: dashboard takes key=value; {nearest(key, ARGUMENTS)}")
        if key in values:
            raise UserError(f"{word}: given twice")
        values[key] = value
    if ("run" in values) == ("project" in values):
        raise UserError("dashboard: needs run=DIR, or project=NAME for all runs of a project below root=outputs")
    if "root" in values and "run" in values:
        raise UserError(f"root={values['root']}: has an effect only with project=NAME")
    return values


def _subject(arguments: dict[str, str]) -> Subject:
    if "run" in arguments:
        run_dir = Path(arguments["run"])
        run = RunReader(run_dir).read()
        if not run.series:
            raise UserError(f"run={run_dir}: no complete line in {METRICS_FILE} yet")
        config = wandb_settings(run)
        return Subject(
            run.label, config.project, config.entity, [run], run_dir / DASHBOARD_FILE, run.record.get("wandb_id")
        )
    name, root = arguments["project"], Path(arguments.get("root", "outputs"))
    found = Runs(root)
    runs = [run for run in found.read(found.names()) if run.series and wandb_settings(run).project == name]
    if not runs:
        raise UserError(f"project={name}: no run below root={root} has logged for it", "logger.wandb.project names it")
    return Subject(name, name, wandb_settings(runs[-1]).entity, runs, Path(f"dashboard-{name}.json"), None)


def build_workspace(subject: Subject) -> Workspace:
    """A section for each of the report's, with a panel for each of its charts; all metrics in it are logged."""
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace

    sections = []
    for section, charts in _charts(subject.runs).items():
        panels = []
        for title, names in charts.items():
            stacked = names[0].startswith(SHARE_PREFIX)
            panels.append(LinePlot(title=title, y=list(names), plot_type="stacked-area" if stacked else "line"))
        sections.append(Section(name=section, panels=panels, is_open=True))
    filters = f"Metric('ID') = '{subject.run_id}'" if subject.run_id else ""
    return Workspace(
        entity=subject.entity or "",
        project=subject.project,
        name=f"trainer: {subject.title}",
        sections=sections,
        runset_settings=RunsetSettings(filters=filters),
    )


def _charts(runs: Sequence[RunData]) -> dict[Section, dict[str, list[str]]]:
    """Names of metrics by section and chart, in the order of the report."""
    found: dict[tuple[Section, str], list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.series):
        section, title, _ = ("Speed", "time by state", "") if name.startswith(SHARE_PREFIX) else placed(name)
        found.setdefault((section, title), []).append(name)
    order = sorted(found, key=lambda place: (SECTIONS.index(place[0]), rank_in_section(place[1]), place[1]))
    return {section: {title: found[s, title] for s, title in order if s == section} for section, _ in order}


def _stored_view(file: Path) -> dict[str, str] | None:
    """The workspace on the server that an earlier call has saved, which this one replaces."""
    try:
        return read_json(file)["view"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged", "remove it to save a new dashboard") from error


def _write(subject: Subject, workspace: Workspace, view: dict[str, str] | None) -> None:
    """Write what the server would get. The package has no public function that gives it without a server."""
    spec: dict[str, Any] = json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    try:
        write_json(subject.file, {"project": subject.project, "name": workspace.name, "view": view, "spec": spec})
    except OSError as error:
        raise UserError(f"{subject.file}: cannot be written ({error.strerror})") from error


def _save(subject: Subject, workspace: Workspace, view: dict[str, str] | None) -> str:
    """Save the workspace on the server. Returns: its address."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError  # wandb raises it and exports it nowhere

    try:
        workspace.entity = workspace.entity or wandb.Api().default_entity or ""
        if view is not None:
            workspace._internal_id, workspace._internal_name = view["id"], view["name"]
        workspace.save()
        url = str(workspace.url)
    except (wandb.Error, WandbApiFailedError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"dashboard: W&B refuses it: {reason}", f"if it was deleted on the server, remove {subject.file}"
        ) from error
    _write(subject, workspace, {"id": workspace._internal_id, "name": workspace._internal_name, "url": url})
    return url
