"""Options of `pytest bench`."""

import warnings

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure():
    """Warnings are errors, but that a first run has nothing to compare with is none."""
    warnings.filterwarnings("default", "Can't compare")
