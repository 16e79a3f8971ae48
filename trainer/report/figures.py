"""Charts as Bokeh figures: no text from files is drawn by Bokeh, so the page escapes all of it in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh import __version__
from bokeh.document import Document
from bokeh.models import (
    BasicTickFormatter,
    BoxZoomTool,
    ColumnDataSource,
    DataRange1d,
    GlyphRenderer,
    Grid,
    HoverTool,
    LinearAxis,
    NumeralTickFormatter,
    PanTool,
    Plot,
    ResetTool,
    SaveTool,
    Scatter,
    TickFormatter,
    WheelZoomTool,
)
from bokeh.models import Line as LineGlyph
from bokeh.models.glyphs import VArea
from bokeh.resources import Resources

from trainer.report.charts import Chart, Line

HEIGHT_PX = 240
# Points are marked where a reader can tell them apart.
MAX_MARKED_POINTS, MAX_MARKED_LINES = 60, 12
# Readable on white and on black; the first ones also with a colour vision deficiency (Okabe and Ito).
COLORS = (
    "#0a84d0", "#e07b00", "#12a07a", "#cc5c9e", "#b0455f", "#7d66d9", "#8a8f00", "#1aa6b8", "#c2571a", "#6b8e23",
    "#4f6bd6", "#d14b8f", "#2f9e44", "#a8741a", "#9a4dca", "#5f7f95", "#d9480f", "#0b8793", "#8b5e83", "#7a8b3c",
)  # fmt: skip
AXIS: dict[str, Any] = {"minor_tick_line_color": None, "major_label_text_font_size": "11px"}
# Nothing on the page is selected or muted; the variants of a glyph for that would triple what a browser has to set up.
PLAIN: dict[str, Any] = {"selection_glyph": None, "nonselection_glyph": None, "muted_glyph": None}
DASHES = ("solid", "dashed", "dotted", "dotdash", "dashdot")


def bokeh_script() -> str:
    """The text of bokeh.min.js alone: widgets, tables, WebGL and MathJax are not used."""
    (script,) = Resources(mode="inline", components=["bokeh"]).js_raw[:1]
    return script


def color_of(chart: Chart, line: Line, num_runs: int) -> str:
    """By run where several are compared, else by part."""
    number = line.run if num_runs > 1 and not chart.stacked else chart.parts.index(line.part)
    return COLORS[number % len(COLORS)]


def dash_of(chart: Chart, line: Line, num_runs: int) -> str:
    """By part where the colour shows the run."""
    return DASHES[chart.parts.index(line.part) % len(DASHES)] if num_runs > 1 else "solid"


def columns_of(chart: Chart) -> list[dict[str, np.ndarray]]:
    """The data of each line, as the page and its updates send it."""
    if not chart.stacked:
        return [{"x": line.steps.astype(np.int32), "y": _finite(line.values)} for line in chart.lines]
    top = np.cumsum([line.values for line in chart.lines], axis=0)
    return [
        {
            "x": line.steps.astype(np.int32),
            "bottom": _finite(upper - line.values),
            "top": _finite(upper),
            "y": _finite(line.values),
        }
        for line, upper in zip(chart.lines, top, strict=True)
    ]


def _finite(values: np.ndarray) -> np.ndarray:
    """Single precision is finer than a pixel; infinity would stretch the axis, so it interrupts the line like NaN."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return np.where(np.isfinite(single), single, np.float32(np.nan))


def figure_json(chart: Chart, num_runs: int) -> Any:
    """The figure as Bokeh's JSON. The renderers of line i are named "i"."""
    plot = Plot(
        x_range=DataRange1d(range_padding=0.01, only_visible=True),
        y_range=_y_range(chart),
        height=HEIGHT_PX,
        sizing_mode="stretch_width",
        toolbar_location="above",
        toolbar_inner=True,
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_right=12,
    )
    plot.toolbar.autohide = True
    plot.toolbar.logo = None
    x_axis = LinearAxis(formatter=BasicTickFormatter(use_scientific=False), **AXIS)
    # Bokeh's stubs give the property the type of its default.
    y_axis = LinearAxis(formatter=_tick_formatter(chart), **AXIS)  # pyright: ignore[reportArgumentType]
    plot.add_layout(x_axis, "below")
    plot.add_layout(y_axis, "left")
    plot.add_layout(Grid(dimension=1, axis=y_axis))
    hovered = []
    for number, (line, columns) in enumerate(zip(chart.lines, columns_of(chart), strict=True)):
        source = ColumnDataSource(dict(columns), name=str(number))
        color = color_of(chart, line, num_runs)
        hovered.append(_draw(plot, chart, line, source, color, dash_of(chart, line, num_runs)))
    # The page writes the tooltip, with the label of the line.
    hover = HoverTool(renderers=hovered, tooltips=None)
    plot.add_tools(PanTool(), BoxZoomTool(), WheelZoomTool(), ResetTool(), SaveTool(), hover)
    return _item(plot)


def _item(plot: Plot) -> Mapping[str, Any]:
    """What bokeh.embed.json_item returns. That also searches all models for Python callbacks and themes, of which there
    are none here: a quarter of the time of a page, which every run writes at its end.
    """
    document = Document()
    document.add_root(plot)
    return {"target_id": None, "root_id": plot.id, "doc": document.to_json(deferred=False), "version": __version__}


def _draw(plot: Plot, chart: Chart, line: Line, source: ColumnDataSource, color: str, dash: str) -> GlyphRenderer[Any]:
    """Add a line. Returns: the renderer that shows its values under the pointer."""
    name = source.name
    if chart.stacked:
        plot.add_glyph(
            source, VArea(x="x", y1="bottom", y2="top", fill_color=color, fill_alpha=0.75), name=name, **PLAIN
        )
        # An area has no points; its upper edge has.
        return plot.add_glyph(source, LineGlyph(x="x", y="top", line_color=color), name=name, **PLAIN)
    glyph = LineGlyph(x="x", y="y", line_color=color, line_dash=dash, line_width=1.6)
    drawn = plot.add_glyph(source, glyph, name=name, **PLAIN)
    is_short = len(line.steps) < 3
    if not is_short and (len(line.steps) > MAX_MARKED_POINTS or len(chart.lines) > MAX_MARKED_LINES):
        return drawn
    # A single point, as of a test set, has no line.
    marker = Scatter(x="x", y="y", size=6 if is_short else 4, fill_color=color, line_color=color)
    return plot.add_glyph(source, marker, name=name, **PLAIN)


def _y_range(chart: Chart) -> DataRange1d:
    if chart.stacked:
        return DataRange1d(start=0.0, end=1.0, only_visible=True)
    values = np.concatenate([line.values for line in chart.lines])
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    # Bokeh's default shows a constant learning rate of 0.001 between -1 and 1.
    span = DataRange1d(default_span=largest or 1.0, only_visible=True)
    if chart.title.endswith("_per_s"):
        # A rate is read by its height, which an axis that starts elsewhere would exaggerate.
        span.start = 0.0
    return span


def _tick_formatter(chart: Chart) -> TickFormatter:
    return NumeralTickFormatter(format="0%") if chart.stacked else BasicTickFormatter(power_limit_high=6)


def updates(charts: Sequence[Chart]) -> list[list[Mapping[str, list[float | None]]]]:
    """The data of all charts as plain JSON: by chart, by line, by column; null interrupts a line."""
    return [
        [{name: _plain(values) for name, values in columns.items()} for columns in columns_of(chart)]
        for chart in charts
    ]


def _plain(values: np.ndarray) -> list[float | None]:
    return [value if value == value else None for value in values.tolist()]
