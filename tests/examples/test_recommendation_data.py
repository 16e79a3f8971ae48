"""Files of interactions, the split by time, and what notices leakage."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED_DATA

from examples.recommendation.files import INTERACTIONS, ITEMS, MAX_TEXT, Interactions, read_folder, write_folder
from examples.recommendation.generated import generated
from examples.recommendation.movielens import read_movielens
from examples.recommendation.split import Cuts, LeakageError, check_no_leakage, cuts_of, queries_between
from examples.recommendation.statistics import RECENT_DAYS, SHRINKAGE, Statistics
from trainer import UserError

GOOD_ITEMS = "item,text,genres\n1,First,a|b\n2,Second,b\n3,Third,\n"
GOOD_INTERACTIONS = "user,item,time\nx,1,100\nx,2,200\ny,3,150\n"


def written(folder: Path, items: str | bytes = GOOD_ITEMS, interactions: str | bytes = GOOD_INTERACTIONS) -> Path:
    for name, content in ((ITEMS, items), (INTERACTIONS, interactions)):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_a_catalogue_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    before = generated(num_items=30, num_users=10)
    write_folder(before, tmp_path)
    after = read_folder(tmp_path)
    assert (after.ids, after.texts, after.genres) == (before.ids, before.texts, before.genres)
    names = [[catalogue.user_ids[u] for u in catalogue.interactions.users] for catalogue in (before, after)]
    assert names[0] == names[1]
    assert (after.interactions.items == before.interactions.items).all()
    assert (after.interactions.times == before.interactions.times).all()


@pytest.mark.parametrize(
    ("items", "interactions", "message"),
    [
        (b"", GOOD_INTERACTIONS, "items.csv has no rows"),
        ("item,text\n", GOOD_INTERACTIONS, "items.csv has no rows"),
        ("item,title\n1,First\n", GOOD_INTERACTIONS, "items.csv has no column text; it has item, title"),
        (GOOD_ITEMS, "user,time\nx,1\n", "interactions.csv has no column item; it has user, time"),
        (b"item,text\n1,caf\xe9\n", GOOD_INTERACTIONS, "byte 15 (0xe9) is not UTF-8"),
        (GOOD_ITEMS.encode("utf-16"), GOOD_INTERACTIONS, "byte 0 (0xff) is not UTF-8"),
        ('item,text\n1,"First\n', GOOD_INTERACTIONS, "items.csv is no CSV file: unexpected end of data"),
        ("item,text\n,First\n2,\n", GOOD_INTERACTIONS, "no item has an id and a text"),
        (GOOD_ITEMS, "user,item,time\nx,9,100\n", "1 interactions with an unknown item were skipped"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    tmp_path: Path, items: str | bytes, interactions: str | bytes, message: str
) -> None:
    with pytest.raises(UserError) as refused:
        read_folder(written(tmp_path, items, interactions))
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"path={tmp_path}")
    assert len(refused.value.lines) <= 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no items\.csv there"):
        read_folder(tmp_path)


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    long = "word " * 200_000
    items = f"item,text\n1,First\n1,Again\n2,\n3,{long}\n4,Fourth\n"
    rows = ["x,1,100", "x,1,300", "x,9,100", ",1,100", "x,3,soon", "x,3,-5", "x,3,99999999999999", "y,4,2024-05-01",
            "y,3,2024-04-30T12:00:00Z", "y,1", "z,1,50,extra"]  # fmt: skip
    catalogue = read_folder(written(tmp_path, items, "\n".join(["user,item,time", *rows])))
    assert catalogue.ids == ["1", "3", "4"]
    assert len(catalogue.texts[1]) <= MAX_TEXT
    events = catalogue.interactions
    assert [catalogue.user_ids[user] for user in events.users] == ["x", "y", "y", "z"]
    assert [catalogue.ids[item] for item in events.items] == ["1", "3", "4", "1"]
    assert np.diff(events.times[1:3])[0] == 12 * 3600
    assert list(catalogue.notes) == [
        "1 items without an id or a text were skipped",
        "1 items with the id of an earlier one were skipped",
        f"1 item texts were cut to {MAX_TEXT:,} characters",
        "5 interactions without a user, or a time between 1970 and 2100, were skipped",
        "1 interactions with an unknown item were skipped",
        "1 interactions that repeat one of the same user and item were skipped",
        "1 interactions went back in time, and are now in order for each user",
    ]


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the copy of MovieLens is not here")
def test_movielens_is_read_as_its_files_are() -> None:
    folder = SHARED_DATA / "movielens-small"
    catalogue = read_movielens(folder)
    liked = [line for line in (folder / "ratings.csv").read_text().splitlines()[1:] if float(line.split(",")[2]) >= 4]
    assert len(catalogue.interactions) == len(liked)
    assert catalogue.texts[0] == "Toy Story (1995). Adventure, Animation, Children, Comedy, Fantasy"


@pytest.fixture(scope="module")
def interactions() -> Interactions:
    return generated(num_items=60, num_users=40, seed=1).interactions


def test_queries_look_ahead_only(interactions: Interactions) -> None:
    cuts = cuts_of(interactions)
    queries = queries_between(interactions, cuts.train_before, cuts.validate_before)
    assert len(queries) > 10
    rows = list(zip(interactions.users, interactions.items, interactions.times, strict=True))
    for query in queries:
        own = [(time, item) for user, item, time in rows if user == query.user]
        assert {item for time, item in own if time <= query.moment} == set(query.history)
        expected = {item for time, item in own if query.moment < time < cuts.validate_before}
        assert set(query.targets) == expected
        assert query.first_target >= cuts.train_before


def test_statistics_count_what_came_before(interactions: Interactions) -> None:
    moment = cuts_of(interactions).validate_before
    found = Statistics.before(interactions, moment, 60)
    sets: dict[int, set[int]] = {item: set() for item in range(60)}
    recent = np.zeros(60)
    for user, item, time in zip(interactions.users, interactions.items, interactions.times, strict=True):
        if time < moment:
            sets[int(item)].add(int(user))
            recent[item] += time >= moment - RECENT_DAYS * 86_400
    assert found.likes.tolist() == [len(users) for users in sets.values()]
    assert found.recent_likes.tolist() == recent.tolist()
    together = found.liked_with(np.array([4, 7]))
    for row, one in enumerate((4, 7)):
        for other in range(60):
            common, product = len(sets[one] & sets[other]), len(sets[one]) * len(sets[other])
            assert together[row, other] == pytest.approx(common / np.sqrt(product + SHRINKAGE))


def test_leakage_is_noticed(interactions: Interactions) -> None:
    cuts = cuts_of(interactions)
    queries = queries_between(interactions, cuts.validate_before, np.inf)
    clean = Statistics.before(interactions, cuts.validate_before, 60)
    check_no_leakage(clean.latest, cuts.validate_before, queries)
    planted = Statistics.before(interactions, np.inf, 60)
    with pytest.raises(LeakageError, match="statistics reach"):
        check_no_leakage(planted.latest, cuts.validate_before, queries)
    told = replace(queries[0], history=np.append(queries[0].history, queries[0].targets[0]))
    with pytest.raises(LeakageError, match="is in the history"):
        check_no_leakage(clean.latest, cuts.validate_before, [told])
    with pytest.raises(LeakageError, match="not later"):
        check_no_leakage(clean.latest, cuts.validate_before, [replace(queries[0], moment=queries[0].first_target)])


def test_what_happens_after_a_cut_changes_no_statistics(interactions: Interactions) -> None:
    moment = cuts_of(interactions).train_before
    later = interactions.times >= moment
    changed = replace(interactions, items=np.where(later, 0, interactions.items))
    one, other = (Statistics.before(each, moment, 60) for each in (interactions, changed))
    assert (one.likes == other.likes).all()
    assert (one.by_user != other.by_user).nnz == 0
    leaking = Statistics.before(changed, np.inf, 60)
    assert not (leaking.likes == Statistics.before(interactions, np.inf, 60).likes).all()


def test_interactions_at_one_time_cannot_be_split(interactions: Interactions) -> None:
    with pytest.raises(UserError, match="too few different times"):
        cuts_of(replace(interactions, times=np.full(len(interactions), 1e9)))
    assert isinstance(cuts_of(interactions), Cuts)
