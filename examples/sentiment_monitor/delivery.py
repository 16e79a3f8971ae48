"""Alerts to a webhook and to a file, after they are committed.

The store knows what has not been delivered, so a process that is killed goes on where it was. The file gets each alert
once. A webhook may get one twice, if the process dies between the answer and its record; both have the same
Idempotency-Key.
"""

from __future__ import annotations

import datetime
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from examples.sentiment_monitor.store import Alert, Store
from trainer import UserError

TIMEOUT_S = 5.0
MAX_ATTEMPTS = 5
FIRST_WAIT_S = 1.0
# After this time an attempt whose process has died is made again.
LEASE_S = 2 * TIMEOUT_S
_KEY = "topic = ? AND start_s = ? AND target = ?"

# Delivers an alert. Raises: OSError, HTTPException, ValueError: it did not arrive.
Send = Callable[[Mapping[str, Any]], None]


def targets_of(webhook: str | None, alert_file: Path | None) -> dict[str, Send]:
    """What delivers to each target that is set, by name. Raises: UserError: the address is none of http or https."""
    targets: dict[str, Send] = {}
    if webhook is not None:
        if not webhook.startswith(("http://", "https://")):
            raise UserError(f"webhook={webhook}: an address with http:// or https:// is expected")
        targets["webhook"] = lambda message: post(webhook, message)
    if alert_file is not None:
        targets["file"] = lambda message: append_once(alert_file, message)
    return targets


def message_of(alert: Alert) -> dict[str, Any]:
    """What is sent: the alert, its id, times as text, and the reason as a sentence."""
    start = _text_time(alert.start_s)
    explanation = (
        f"{alert.topic}: {alert.count} negative headlines in the window from {start}; {alert.expected:.1f} are"
        f" expected, {alert.threshold} raise an alert; probability without a surge {alert.p_value:.1e}"
    )
    times = {"window": start, "raised": _text_time(alert.raised_s)}
    return {"id": f"{alert.topic}@{start}", "explanation": explanation, **times, **asdict(alert)}


def deliver(store: Store, targets: Mapping[str, Send]) -> float | None:
    """Attempt every delivery that is due, each once.

    Returns: seconds until the next one is due, None where none waits.
    """
    alerts = {(alert.topic, alert.start_s): alert for alert in store.alerts()}
    waits: list[float] = []
    for row in store.undelivered():
        if row["state"] != "waiting" or row["target"] not in targets:
            continue
        wait_s = due_in_s = row["next_s"] - time.time()
        if due_in_s <= 0:
            wait_s = _attempt(store, row, message_of(alerts[row["topic"], row["start_s"]]), targets[row["target"]])
        if wait_s is not None:
            waits.append(wait_s)
    return max(0.0, min(waits)) if waits else None


def deliver_all(store: Store, targets: Mapping[str, Send]) -> None:
    """Attempt deliveries until each has arrived or was given up."""
    while (wait_s := deliver(store, targets)) is not None:
        time.sleep(wait_s)


def _attempt(store: Store, row: Mapping[str, Any], message: Mapping[str, Any], send: Send) -> float | None:
    """Returns: seconds until the next attempt, None where there is none."""
    key, attempts = [row["topic"], row["start_s"], row["target"]], row["attempts"] + 1
    # The attempt is counted before it is made: attempts stay bounded if the process dies in each of them, and another
    # process on the same store does not make the same one.
    with store.transaction() as db:
        claimed = db.execute(
            f"UPDATE deliveries SET attempts = ?, next_s = ? WHERE {_KEY} AND attempts = ? AND state = 'waiting'",
            [attempts, time.time() + LEASE_S, *key, row["attempts"]],
        )
        if claimed.rowcount == 0:
            return LEASE_S
    wait_s = None
    try:
        if row["attempts"] >= MAX_ATTEMPTS:
            raise OSError(row["error"] or "the process ended during the last attempt")
        send(message)
        state, error = "done", ""
    except (OSError, http.client.HTTPException, ValueError) as reason:
        state, error = "given up", f"{type(reason).__name__}: {reason}"[:200]
        if attempts < MAX_ATTEMPTS:
            state, wait_s = "waiting", FIRST_WAIT_S * 2 ** (attempts - 1)
    with store.transaction() as db:
        db.execute(
            f"UPDATE deliveries SET next_s = ?, state = ?, error = ? WHERE {_KEY}",
            [time.time() + (wait_s or 0.0), state, error, *key],
        )
    return wait_s


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib repeats a redirected POST as a GET without its body, which would count as delivered."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Let the redirect be an error."""


def post(address: str, message: Mapping[str, Any]) -> None:
    """POST a message as JSON. Raises: OSError: no answer within TIMEOUT_S, or none of 2xx."""
    # Header values are Latin-1; a topic may have any name.
    headers = {"Content-Type": "application/json", "Idempotency-Key": json.dumps(message["id"])}
    request = urllib.request.Request(address, json.dumps(message).encode(), headers)
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S):
        pass


def append_once(file: Path, message: Mapping[str, Any]) -> None:
    """Append a message as a line of JSON, unless the file has a message with its id. Raises: OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    text = file.read_text(encoding="utf-8")
    lines = [line for line in text.split("\n") if line.startswith("{") and line.endswith("}")]
    if message["id"] not in {json.loads(line).get("id") for line in lines}:
        begin = "" if text.endswith("\n") or not text else "\n"  # a line that a crash has cut
        with file.open("ab", buffering=0) as out:
            out.write(f"{begin}{json.dumps(message)}\n".encode())


def _text_time(time_s: float) -> str:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat(timespec="seconds")
