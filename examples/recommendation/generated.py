"""A small set of articles and readers, generated from a seed: a stand-in that says nothing about real users.

Each reader prefers two of eight topics and one of four moods. Articles appear over two years; a reader picks from those
of the last months, by topic and mood and by how attractive an article is, which follows a power law.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from examples.recommendation.files import Catalogue, catalogue_of

NAME = "generated"
TOPICS: dict[str, list[str]] = {
    "gardening": ["roses", "compost", "tomatoes", "hedges", "seedlings", "orchards"],
    "astronomy": ["comets", "galaxies", "telescopes", "eclipses", "moons", "nebulae"],
    "cooking": ["soups", "bread", "noodles", "pickles", "pastries", "curries"],
    "cycling": ["mountain bikes", "gears", "bike lanes", "long tours", "frames", "helmets"],
    "history": ["castles", "old maps", "trade routes", "manuscripts", "harbours", "treaties"],
    "music": ["cellos", "choirs", "drums", "synthesizers", "jazz clubs", "film scores"],
    "finance": ["savings", "bonds", "mortgages", "budgets", "pensions", "taxes"],
    "travel": ["night trains", "islands", "hostels", "border towns", "ferries", "deserts"],
}
MOODS: dict[str, list[str]] = {
    "practical": ["How to choose", "A checklist for", "Repairing", "First steps with"],
    "scientific": ["New research on", "Measuring", "The physics of", "A study of"],
    "personal": ["My year with", "Learning to love", "A letter about", "What I got wrong about"],
    "critical": ["The case against", "Who profits from", "The hidden cost of", "Rethinking"],
}
ENDINGS = ["in small flats", "on a tight budget", "for beginners", "after fifty", "in winter", "with children"]
START_S, DAY_S, DAYS = 1_640_995_200, 86_400, 730  # from 1 January 2022


def generated(num_items: int = 400, num_users: int = 300, seed: int = 0) -> Catalogue:
    """The set. Args: num_items: articles. num_users: readers. seed: of everything drawn."""
    draw = np.random.default_rng(seed)
    topics, moods = list(TOPICS), list(MOODS)
    topic, mood = draw.integers(len(topics), size=num_items), draw.integers(len(moods), size=num_items)
    released = np.sort(draw.uniform(0, DAYS, num_items))
    released[: num_items // 4] = 0
    attraction = draw.pareto(1.5, num_items) + 0.2
    titles = [
        f"{draw.choice(MOODS[moods[m]])} {draw.choice(TOPICS[topics[t]])} {draw.choice(ENDINGS)}"
        for t, m in zip(topic, mood, strict=True)
    ]
    items = pd.DataFrame({
        "item": [f"a{number}" for number in range(num_items)],
        "text": [f"{title}. {topics[t]}, {moods[m]}" for title, t, m in zip(titles, topic, mood, strict=True)],
        "genres": [f"{topics[t]}|{moods[m]}" for t, m in zip(topic, mood, strict=True)],
    })  # fmt: skip
    rows = []
    for user in range(num_users):
        liked_topics, liked_mood = draw.choice(len(topics), 2, replace=False), draw.integers(len(moods))
        taste = attraction * np.where(np.isin(topic, liked_topics), 8.0, 1.0) * np.where(mood == liked_mood, 3.0, 1.0)
        days = np.sort(draw.uniform(draw.uniform(0, 0.9 * DAYS), DAYS, draw.integers(12, 40)))
        read: set[int] = set()
        for day in days:
            age = day - released
            weights = taste * np.where(age >= 0, np.exp(-np.maximum(age, 0) / 120) + 0.05, 0.0)
            weights[list(read)] = 0.0
            if not weights.any():
                continue  # everything that has appeared is read
            item = int(draw.choice(num_items, p=weights / weights.sum()))
            read.add(item)
            rows.append((f"u{user}", f"a{item}", str(START_S + int(day * DAY_S))))
    return catalogue_of(items, pd.DataFrame(rows, columns=["user", "item", "time"]), Path(NAME))
