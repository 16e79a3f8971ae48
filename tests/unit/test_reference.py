"""docs/reference.md is what the schema and conf/ give."""

from conftest import REPOSITORY

from trainer.config.reference import reference


def test_the_committed_page_is_current() -> None:
    page = reference()
    assert (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8") == page
    assert "trainer.max_epochs=10" in page and "optimizer.lr=" in page
