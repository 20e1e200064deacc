"""Studies of a known truth, written once for all tests of recommendations."""

import pytest

from tests.assets.known_truth import write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """Root of a study whose best share is BEST_SHARE. Many tests write into it, each under a name of its own."""
    root = str(tmp_path_factory.mktemp("study"))
    write_study(root)
    return root


@pytest.fixture(scope="session")
def harmful(tmp_path_factory):
    """A study of a source that only harms: the loss rises from natural text on, steeply at the end."""
    root = str(tmp_path_factory.mktemp("harmful"))
    write_study(root, shares=(0.0, 1 / 3, 2 / 3, 1.0), best=0.0)
    return root


@pytest.fixture(scope="session")
def early(tmp_path_factory):
    """A study whose best share, 15 %, lies below half of the first that was trained."""
    root = str(tmp_path_factory.mktemp("early"))
    write_study(root, shares=(0.0, 1 / 3, 2 / 3, 1.0), best=0.15)
    return root
