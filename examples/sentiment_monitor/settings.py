"""monitor.yaml: the rule of an alert, and the keywords of the topics."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from examples.sentiment_monitor.surge import SurgeRule
from trainer import UserError

DEFAULT = Path(__file__).with_name("monitor.yaml")
OTHER = "other"
Word = Annotated[str, Field(min_length=1)]


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Settings:
    """The keys of monitor.yaml, where each is described."""

    window_s: Annotated[int, Field(ge=60)]
    history_windows: Annotated[int, Field(ge=2)]
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    size: Annotated[float, Field(gt=0, le=1e6)]
    min_count: Annotated[int, Field(ge=1)]
    cool_down_s: Annotated[int, Field(ge=0)]
    topics: dict[Word, Annotated[list[Word], Field(min_length=1)]]

    @property
    def rule(self) -> SurgeRule:
        """When a count is a surge."""
        return SurgeRule(self.false_alarm_rate, self.size, self.history_windows, self.min_count)

    @property
    def false_alarms_per_year(self) -> float:
        """At most, over all topics, before the cool-down."""
        return self.false_alarm_rate * (len(self.topics) + 1) * 365 * 86400 / self.window_s


def read_settings(file: Path) -> Settings:
    """Read a file. Raises: UserError: it is missing, no YAML, or a key is wrong."""
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        settings = TypeAdapter(Settings).validate_python(content)
    except FileNotFoundError as error:
        raise UserError(f"config={file}: no such file") from error
    except ValidationError as error:
        raise UserError(f"config={file}: {first_problem(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config={file}: cannot be read: {' '.join(str(error).split())[:200]}") from error
    if OTHER in settings.topics:
        raise UserError(f"config={file}: topics.{OTHER}: is the name of headlines without a topic; take another")
    return settings


def first_problem(error: ValidationError) -> str:
    """Key, value and reason of the first problem that pydantic has found, on one line."""
    problem = error.errors()[0]
    key = ".".join(map(str, problem["loc"]))
    return f"{key}={str(problem['input'])[:80]}: {problem['msg']}" if key else problem["msg"]


@dataclass(frozen=True)
class Topics:
    """Finds the topic of a headline by keywords."""

    keywords: dict[str, list[str]]
    _patterns: dict[str, re.Pattern[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        patterns = {
            topic: re.compile(rf"\b(?:{'|'.join(re.escape(word) for word in words)})\b", re.IGNORECASE)
            for topic, words in self.keywords.items()
        }
        object.__setattr__(self, "_patterns", patterns)

    def of(self, text: str) -> str:
        """The topic with the most keywords in a text, the first of several, or "other"."""
        found = {topic: len(pattern.findall(text)) for topic, pattern in self._patterns.items()}
        best = max(found, key=lambda topic: found[topic], default=OTHER)
        return best if found.get(best) else OTHER
