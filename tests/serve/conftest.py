"""Exports that are served: of an image classifier and of a text classifier."""

from pathlib import Path

import pytest
from serve_exports import trained_on_images, trained_on_texts


@pytest.fixture(scope="session")
def image_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def text_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on_texts(tmp_path_factory.mktemp("texts"))
