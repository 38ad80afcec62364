"""A small real embedder with random weights: sentence-transformers' own format, no download."""

from pathlib import Path

import pytest

from tests.tiny import write_tiny_embedder


@pytest.fixture(scope="session")
def tiny_embedder_folder(tmp_path_factory) -> Path:
    return write_tiny_embedder(tmp_path_factory.mktemp("embedders") / "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_embedder(tiny_embedder_folder):
    from retrieval.embedding import Embedder

    return Embedder(tiny_embedder_folder, "tiny", "sha256:1")
