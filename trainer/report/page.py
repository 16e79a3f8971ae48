"""The page: one HTML file that needs nothing else, or the same page kept up to date by the live server."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer.errors import UserError
from trainer.report import facts
from trainer.report.charts import SECTIONS, SETS, Chart, build_charts, mean_shares, share_names
from trainer.report.figures import COLORS, bokeh_script, color_of, dash_of, figure_json
from trainer.report.pictures import read_gallery
from trainer.report.profile import read_profile
from trainer.report.read import RunData, RunReader, unique_labels
from trainer.run.files import METRICS_FILE, REPORT_FILE, write_text
from trainer.version import __version__

ASSETS = Path(__file__).with_name("assets")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Live:
    """How a page is kept up to date. url: of new points. signature: of what only a reload can change."""

    url: str
    signature: str


def write_report(run_dirs: Sequence[Path], out: Path) -> None:
    """Write the page of one run, or of several compared.

    Raises: UserError: a run is missing, damaged or without a single logged step, or `out` cannot be written.
    """
    labels = unique_labels(run_dirs)
    runs = [RunReader(path).read(label) for path, label in zip(run_dirs, labels, strict=True)]
    for run in runs:
        if not run.series:
            raise UserError(f"run={run.directory}: no complete line in {METRICS_FILE} yet")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, render_report(runs, page_dir=out.parent))
    except OSError as error:
        raise UserError(f"out={out}: cannot be written ({error.strerror})") from error


def write_final_report(run_dir: Path) -> None:
    """Write report.html into the directory of a finished run; a failure is logged and ends no run."""
    try:
        write_report([run_dir], run_dir / REPORT_FILE)
    except UserError as error:
        log.warning("no %s: %s", REPORT_FILE, error)
    except Exception:
        log.exception("no %s", REPORT_FILE)


def render_report(runs: Sequence[RunData], live: Live | None = None, page_dir: Path | None = None) -> str:
    """The page as HTML. Args: live: with it the page polls for new points. page_dir: where it is written; for links."""
    charts = build_charts(runs)
    compared = len(runs) > 1
    # Of several runs the last pictures are compared, not how each came about.
    galleries = [read_gallery(run.directory, max_frames=1) if compared else read_gallery(run.directory) for run in runs]
    data = {
        "charts": [_chart_json(chart, runs) for chart in charts],
        "live": {"url": live.url, "signature": live.signature} if live else None,
    }
    return template("report.html").render(
        title=runs[0].label if not compared else f"{len(runs)} runs compared",
        runs=runs,
        compared=compared,
        live=live,
        colors=[COLORS[number % len(COLORS)] for number in range(len(runs))],
        charts=list(enumerate(charts)),
        legends=[_legend(chart, runs) for chart in charts],
        sections=[section for section in SECTIONS if any(chart.section == section for chart in charts)],
        parts=[part for part in SETS if any(part in chart.parts for chart in charts)],
        shares=_share_bars(runs),
        config=facts.config_rows(runs),
        galleries=galleries,
        profiles=[read_profile(run.directory, page_dir) for run in runs],
        facts=facts,
        version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        data=script_json(data),
        bokeh=Markup(bokeh_script()),
    )


@cache
def template(name: str) -> Any:
    """A template of the assets folder; everything that it inserts is escaped unless it is Markup."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["asset"] = lambda file: Markup((ASSETS / file).read_text(encoding="utf-8"))
    return environment.get_template(name)


def script_json(value: Any) -> Markup:
    """JSON for a script element, which text from files cannot end."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def signature(runs: Sequence[RunData], charts: Sequence[Chart]) -> str:
    """What a page shows apart from points: when it changes, the page has to be loaded again."""
    lines = [[chart.title, [[line.run, line.part] for line in chart.lines]] for chart in charts]
    states = [
        [run.label, run.record["status"], len(run.attempts), [figure.name for figure in facts.key_figures(run)]]
        for run in runs
    ]
    return json.dumps([lines, states])


def line_label(chart: Chart, number: int, runs: Sequence[RunData]) -> str:
    """What a line is called in the legend and under the pointer."""
    line = chart.lines[number]
    words = [runs[line.run].label] if len(runs) > 1 and not chart.stacked else []
    return " ".join([*words, line.part]).strip() or chart.title


def _chart_json(chart: Chart, runs: Sequence[RunData]) -> Mapping[str, Any]:
    """lines: label, run and part of each, which the page needs to choose what is visible."""
    lines = [
        {"label": line_label(chart, number, runs), "run": line.run, "part": line.part}
        for number, line in enumerate(chart.lines)
    ]
    return {"figure": figure_json(chart, len(runs)), "stacked": chart.stacked, "lines": lines}


def _legend(chart: Chart, runs: Sequence[RunData]) -> list[Mapping[str, Any]]:
    """Entries of a chart's own legend: of its lines, or of its parts where the page's legend shows the runs."""
    entries: dict[str, Mapping[str, Any]] = {}
    for number, line in enumerate(chart.lines):
        by_line = len(runs) == 1 or chart.stacked
        text = line_label(chart, number, runs) if by_line else line.part or chart.title
        color = color_of(chart, line, len(runs)) if by_line else "currentColor"
        if chart.parts != ("",):
            dash = dash_of(chart, line, len(runs))
            entries.setdefault(text, {"part": line.part, "text": text, "color": color, "dash": dash})
    return list(entries.values())


def _share_bars(runs: Sequence[RunData]) -> list[tuple[str, list[tuple[str, float, str]]]]:
    """Where the time of each run went on average: (label, [(state, share, colour)]); empty without shares."""
    colors = {name: COLORS[number % len(COLORS)] for number, name in enumerate(share_names(runs))}
    bars = [(run.label, mean_shares(run)) for run in runs]
    return [(label, [(n, s, colors[n]) for n, s in shares.items()]) for label, shares in bars if shares]
