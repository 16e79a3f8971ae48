"""The parts of a monitor from its options, and what `calibrate` prints."""

from __future__ import annotations

from examples.sentiment_monitor.delivery import Send, targets_of
from examples.sentiment_monitor.monitor import Monitor
from examples.sentiment_monitor.options import CalibrateOptions, ScoreOptions, ServeOptions
from examples.sentiment_monitor.settings import OTHER, read_settings
from examples.sentiment_monitor.store import Store
from examples.sentiment_monitor.surge import estimated_size
from examples.sentiment_monitor.training import TrainedModel
from trainer import UserError

STORE_FILE = "monitor.sqlite"


def opened(options: ScoreOptions | ServeOptions) -> tuple[Monitor, dict[str, Send]]:
    """A monitor with its model loaded, and where its alerts go. Raises: UserError: an option, the model, the store."""
    settings, targets = read_settings(options.config), targets_of(options.webhook, options.alert_file)
    trained = TrainedModel.read(options.out)
    store = Store(options.out / STORE_FILE, settings.window_s)
    return Monitor(store, trained.load(), settings, list(targets)), targets


def calibration(options: CalibrateOptions) -> list[str]:
    """For each topic: the size r that its windows show, and the computed rate of false alarms with the size in use.

    Left out are windows from an alert to the end of its cool-down, and the newest one, which is open.

    Raises: UserError: the store has no history.
    """
    settings = read_settings(options.config)
    file = options.out / STORE_FILE
    if not file.exists():
        raise UserError(f"out={options.out}: has no {STORE_FILE}: score some headlines first")
    store = Store(file, settings.window_s)
    counts = {(row["topic"], row["start_s"]): row["negative"] for row in store.series()}
    starts = sorted({start_s for _, start_s in counts})[:-1]
    alerts = [(alert.topic, alert.start_s, alert.raised_s + settings.cool_down_s) for alert in store.alerts()]
    lines = [
        f"size={settings.size:g} in use; false alarms at most {settings.false_alarms_per_year:.1f} a year on all topics"
    ]
    for topic in [*settings.topics, OTHER]:
        loud = [(first, last) for name, first, last in alerts if name == topic]
        quiet = [
            counts.get((topic, start), 0) for start in starts if not any(first <= start <= last for first, last in loud)
        ]
        if not sum(quiet):
            lines.append(f"{topic}: no negative headline")
            continue
        found = estimated_size(quiet)
        rate = settings.rule.computed_rate(found.mean)
        lines.append(
            f"{topic}: {found.mean:.2f} negative headlines a window, size {found.size:.3g}"
            f" (95 % interval {found.low:.3g} to {found.high:.3g}), computed false alarms a window {rate:.2e}"
        )
    return lines
