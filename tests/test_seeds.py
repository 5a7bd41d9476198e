"""What a test draws follows from its name and --seed alone."""

import sys

import conftest
import pytest

TESTS = """
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

IMPORTED, EXAMPLES = torch.rand(()), []


@pytest.fixture(scope="module")
def shared():
    return torch.rand(())


@pytest.mark.parametrize("name", ["a", "b"])
def test_numbers(name, shared, record_property):
    record_property("drawn", [x.item() for x in (IMPORTED, shared, torch.rand(()))])


@given(st.integers())
def test_examples(number):
    EXAMPLES.append(number)


def test_that_reads_them(record_property):
    record_property("drawn", EXAMPLES)
"""


class Recorder:
    def __init__(self):
        self.drawn = {}

    def pytest_runtest_logreport(self, report):
        assert not report.failed, report.longreprtext
        if report.when == "call":
            self.drawn |= {report.nodeid.partition("::")[2]: v for _, v in report.user_properties}


def drawn(path, *tests, seed=0):
    """{name of a test: what it drew} of a run of these tests, in this order."""
    recorder = Recorder()
    names = [f"{path}::{test}" for test in tests]
    options = ["--rootdir", path.parent, "-p", "no:faulthandler", "-p", "no:cacheprovider", "-q"]
    arguments = [*map(str, options), f"--seed={seed}", *names]
    sys.modules.pop(path.stem, None)
    assert pytest.main(arguments, plugins=[conftest, recorder]) == 0
    return recorder.drawn


def test_what_a_test_draws_follows_from_its_name_and_the_seed(tmp_path):
    path = tmp_path / "test_draws.py"
    path.write_text(TESTS)
    examples = ["test_examples", "test_that_reads_them"]
    found = drawn(path, "test_numbers", *examples)
    a, b = found["test_numbers[a]"], found["test_numbers[b]"]
    assert a[:2] == b[:2]
    assert len({*a, *b}) == 4
    assert len(found["test_that_reads_them"]) == 100
    assert drawn(path, *examples, "test_numbers[b]", "test_numbers[a]") == found
    assert drawn(path, "test_numbers[b]") == {"test_numbers[b]": b}
    other = drawn(path, "test_numbers", *examples, seed=1)
    assert not {*a, *b} & {*other["test_numbers[a]"], *other["test_numbers[b]"]}
    assert other["test_that_reads_them"] != found["test_that_reads_them"]
