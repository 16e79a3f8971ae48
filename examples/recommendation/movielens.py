"""MovieLens' files in the form that this application reads."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from examples.recommendation.files import Catalogue, Table, catalogue_of, read_csv

MOVIES, RATINGS = "movies.csv", "ratings.csv"
# Stars from which a rating says that the user liked the film.
LIKED = 4.0
NO_GENRES = "(no genres listed)"


def is_movielens(folder: Path) -> bool:
    """Whether a folder has MovieLens' files."""
    return (folder / MOVIES).is_file() and (folder / RATINGS).is_file()


def read_movielens(folder: Path) -> Catalogue:
    """Ratings of at least LIKED stars, and titles with genres. Raises: UserError: see read_folder.

    Tags are not read: many were written after the cut in time, so they would leak into the texts of items.
    """
    movies = read_csv(folder / MOVIES, ("movieId", "title", "genres"))
    ratings = read_csv(folder / RATINGS, ("userId", "movieId", "rating", "timestamp"))
    genres = movies["genres"].where(movies["genres"] != NO_GENRES, "")
    described = movies["title"] + ". " + genres.str.replace("|", ", ", regex=False)
    items = pd.DataFrame({"item": movies["movieId"], "text": described, "genres": genres})
    stars: Table = pd.to_numeric(ratings["rating"], errors="coerce")
    columns = {"userId": "user", "movieId": "item", "timestamp": "time"}
    return catalogue_of(items, ratings[stars >= LIKED].rename(columns=columns), folder)
