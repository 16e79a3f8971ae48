"""From a batch of headlines to a committed transaction: sentiment, topic, counts, alerts."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from examples.sentiment_monitor.headlines import Headline, NoHeadline, headline_of
from examples.sentiment_monitor.settings import Settings, Topics
from examples.sentiment_monitor.store import Alert, Scored, Store, insert, insert_alert

# Texts in, a mapping with label and probability for each out: what trainer.load and trainer.export.load return.
Model = Callable[[list[str]], Sequence[Mapping[str, Any]]]


@dataclass
class Outcome:
    """What became of records.

    late: stored, but older than the windows that are still tested. skipped: by reason.
    """

    stored: int = 0
    duplicates: int = 0
    late: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    alerts: list[Alert] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Count another outcome in."""
        self.stored += other.stored
        self.duplicates += other.duplicates
        self.late += other.late
        self.skipped += other.skipped
        self.alerts += other.alerts

    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.stored:,} headlines stored", f"{self.duplicates:,} already known", f"{self.late:,} late"]
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in self.skipped.most_common())
        return ", ".join([*parts, f"{self.skipped.total():,} skipped"]) + (f" ({reasons})" if reasons else "")


class Monitor:
    """Args: targets: where alerts are delivered to, by name."""

    def __init__(self, store: Store, model: Model, settings: Settings, targets: Sequence[str] = ()) -> None:
        self.store, self.model, self.settings, self.targets = store, model, settings, tuple(targets)
        self.topics = Topics(settings.topics)

    def add(self, records: Sequence[Any], origin: str) -> Outcome:
        """Score and store records as one transaction; those that are no headlines are counted.

        Args: origin: of records that do not state it.
        """
        outcome, headlines = Outcome(), list[Headline]()
        now_s = time.time()
        for record in records:
            try:
                if not isinstance(record, Mapping):
                    raise NoHeadline("not an object with a headline")
                headlines.append(headline_of(record, origin, now_s))
            except NoHeadline as reason:
                outcome.skipped[str(reason)] += 1
        new = self.store.unknown([each.key for each in headlines])
        first = {each.key: each for each in reversed(headlines) if each.key in new}
        scored = self._score(sorted(first.values(), key=lambda each: (each.published_s, each.key)))
        with self.store.transaction() as db:
            windows = _Windows(db, self.settings, self.targets)
            for each in scored:
                if insert(db, each):
                    windows.count(each, outcome)
        outcome.duplicates = len(headlines) - outcome.stored
        return outcome

    def _score(self, headlines: Sequence[Headline]) -> list[Scored]:
        if not headlines:
            return []
        window_s = self.settings.window_s
        return [
            Scored(
                **vars(headline),
                start_s=int(headline.published_s // window_s) * window_s,
                topic=self.topics.of(headline.text),
                sentiment=result["label"],
                probability=float(result["probability"]),
            )
            for headline, result in zip(headlines, self.model([each.text for each in headlines]), strict=True)
        ]


class _Windows:
    """The windows of all topics as a transaction sees them."""

    def __init__(self, db: sqlite3.Connection, settings: Settings, targets: Sequence[str]) -> None:
        self.db, self.settings, self.targets = db, settings, targets
        self.newest = db.execute("SELECT coalesce(max(start_s), 0) FROM windows").fetchone()[0]

    def count(self, scored: Scored, outcome: Outcome) -> None:
        """Test the window of a headline that has just been stored."""
        outcome.stored += 1
        self.newest = max(self.newest, scored.start_s)
        # Feeds are late by minutes, so the window before the newest one is still tested.
        if scored.start_s < self.newest - self.settings.window_s:
            outcome.late += 1
        elif scored.sentiment == "negative":
            alert = self._tested(scored)
            if alert is not None:
                insert_alert(self.db, alert, self.targets)
                outcome.alerts.append(alert)

    def _tested(self, scored: Scored) -> Alert | None:
        """The alert that a negative headline raises."""
        rule, window = self.settings.rule, {"topic": scored.topic, "start_s": scored.start_s}
        (count,) = self._row("SELECT negative FROM windows WHERE topic = :topic AND start_s = :start_s", window)
        if count < rule.min_count or self._cooling_down(scored):
            return None
        past = self._past(scored)
        if past is None or count < rule.threshold(past):
            return None
        counted = self.db.execute(
            "SELECT text FROM headlines WHERE topic = :topic AND start_s = :start_s AND sentiment = 'negative'"
            " ORDER BY published_s, key",
            window,
        )
        return Alert(
            **window,
            raised_s=scored.published_s,
            count=count,
            expected=rule.expected(past),
            threshold=rule.threshold(past),
            p_value=rule.p_value(count, past),
            headlines=[row["text"] for row in counted],
        )

    def _past(self, scored: Scored) -> int | None:
        """Negative headlines of the topic in the windows before; None while there are too few windows.

        A window without any headline, of whatever topic, is one in which nothing was read. It is no quiet window.
        """
        num_windows, oldest = self._row(
            "SELECT count(*), min(start_s) FROM"
            " (SELECT DISTINCT start_s FROM windows WHERE start_s < ? ORDER BY start_s DESC LIMIT ?)",
            [scored.start_s, self.settings.history_windows],
        )
        if num_windows < self.settings.history_windows:
            return None
        query = "SELECT coalesce(sum(negative), 0) FROM windows WHERE topic = ? AND start_s >= ? AND start_s < ?"
        return self._row(query, [scored.topic, oldest, scored.start_s])[0]

    def _row(self, query: str, values: Sequence[Any] | Mapping[str, Any]) -> sqlite3.Row:
        return self.db.execute(query, values).fetchone()

    def _cooling_down(self, scored: Scored) -> bool:
        """Whether the topic had an alert in this window, or within the cool-down before the headline."""
        found = self.db.execute(
            "SELECT 1 FROM alerts WHERE topic = ? AND (start_s = ? OR (raised_s <= ? AND raised_s > ?))",
            [scored.topic, scored.start_s, scored.published_s, scored.published_s - self.settings.cool_down_s],
        )
        return found.fetchone() is not None
