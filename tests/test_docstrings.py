"""The example in each docstring runs, and every public class and function has a docstring."""

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import fastindrnn

MODULES = [
    importlib.import_module(f"fastindrnn.{info.name}")
    for info in pkgutil.iter_modules(fastindrnn.__path__)
    if info.name not in ("kernels", "__main__")
]
NAMES = {"torch": torch, "nn": torch.nn, "fastindrnn": fastindrnn, **vars(fastindrnn)}


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in MODULES:
        for test in finder.find(module, globs={**NAMES, **vars(module)}):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("example", list(examples()))
def test_example_runs(example):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = []
    runner.run(example, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)


def public():
    for module in MODULES:
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", None) == module.__name__
            if is_own and not name.startswith("_") and callable(value):
                yield pytest.param(value, id=f"{module.__name__}.{name}")


@pytest.mark.parametrize("value", list(public()))
def test_public_names_are_documented(value):
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value), "no docstring"
