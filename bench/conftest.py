"""Options of `pytest bench`."""

import warnings

import pytest
import torch


def pytest_addoption(parser):
    default = "cuda" if torch.cuda.is_available() else "cpu"
    group = parser.getgroup("benchmarks of fastindrnn")
    group.addoption("--device", default=default, help="default: cuda if there is one, else cpu")
    group.addoption(
        "--all-sizes", action="store_true", help="also those that take a CPU more than a second"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure():
    """Warnings are errors, but that a first run has nothing to compare with is none."""
    warnings.filterwarnings("default", "Can't compare")
