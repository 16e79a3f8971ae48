"""The bar of a run: on a terminal by rich, in a notebook as an output that is replaced, elsewhere none."""

from __future__ import annotations

from html import escape
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar(Protocol):
    """Steps done of a total, with a text. `stop` leaves the last state visible."""

    def update(self, completed: int, text: str) -> None:
        """Draw it."""
        ...

    def stop(self) -> None:
        """End drawing, also after an error."""
        ...


def open_console() -> Console:
    """A console that prints text in a notebook too, where rich would make an output of its own of each line."""
    return Console(force_jupyter=False)


def open_bar(console: Console, total: int, completed: int) -> Bar | None:
    """The bar for where the run is shown; None where only lines can be."""
    if console.is_terminal:
        return TerminalBar(console, total, completed)
    return NotebookBar(total, completed) if Console().is_jupyter else None


class TerminalBar:
    """Rich's, redrawn by the training loop itself: its refresh thread would compete for the interpreter."""

    def __init__(self, console: Console, total: int, completed: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=console, auto_refresh=False)
        self.progress.start()
        self.task = self.progress.add_task("", total=total, completed=completed)

    def update(self, completed: int, text: str) -> None:
        """See Bar."""
        self.progress.update(self.task, completed=completed, description=text)
        self.progress.refresh()

    def stop(self) -> None:
        """See Bar."""
        self.progress.stop()


class NotebookBar:
    """An HTML element, replaced in place. Rich's bar would need ipywidgets, and be lost in the saved notebook."""

    def __init__(self, total: int, completed: int) -> None:
        from IPython.display import display

        self.total = total
        self.handle: Any = display(self._content(completed, ""), raw=True, display_id=True)

    def update(self, completed: int, text: str) -> None:
        """See Bar."""
        self.handle.update(self._content(completed, text), raw=True)

    def stop(self) -> None:
        """See Bar."""

    def _content(self, completed: int, text: str) -> dict[str, str]:
        words = f"{completed:,}/{self.total:,}  {text}".rstrip()
        bar = f'<progress value="{completed}" max="{self.total}"></progress>'
        return {"text/plain": words, "text/html": f"{bar} <code>{escape(words)}</code>"}
