"""Topics and keys of headlines."""

from examples.sentiment_monitor import headlines
from examples.sentiment_monitor.settings import Topics


def test_topics_are_found_by_whole_words() -> None:
    topics = Topics({"energy": ["oil", "natural gas"], "health": ["drug"]})
    assert topics.of("OIL and natural gas beat drug makers") == "energy"
    assert topics.of("A drug, and oil") == "energy"  # as many keywords: the first topic
    assert topics.of("Turmoil in soil") == "other"
    assert Topics({}).of("oil") == "other"


def test_the_same_headline_has_the_same_key() -> None:
    def key(**record: object) -> str:
        return headlines.headline_of(record, "test", 1.77e9).key

    assert key(headline="Oil  fell\n") == key(headline="Oil fell")
    assert key(headline="Oil fell", published=1.7e9) == key(headline="Oil fell", published="2023-11-14T22:13:20Z")
    assert key(headline="Oil fell", published=1.7e9) != key(headline="Oil fell", published=1.6e9)
    assert key(headline="Oil fell", id=7) == key(headline="Oil rose", id="7")
