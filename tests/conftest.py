"""Fixtures that several files of tests share."""
import lean as added
import pytest
from run_cases import write_corpus

from minattn import plots


@pytest.fixture(scope="module")
def no_picture():
    """Drawing takes longer than the runs of these tests; processes of their own draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "loss", lambda rows, path: path.write_bytes(b"a picture"))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A short text, as a file"""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def lean():
    """A mechanism that is registered while a test runs -> its name"""
    with added.registered() as name:
        yield name
