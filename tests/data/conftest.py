"""One data directory for all tests here, so that nothing is written into a user's home."""

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("datasets"))
