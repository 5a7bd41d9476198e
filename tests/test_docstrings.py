"""The example in each docstring runs; every class, function and method has a docstring of its own;
what a user calls says what it takes, returns and raises."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap
from typing import NoReturn

import pytest
import torch

import fastindrnn

MODULES = [
    importlib.import_module(info.name)
    for info in pkgutil.walk_packages(fastindrnn.__path__, "fastindrnn.")
    if not info.name.startswith("fastindrnn.kernels") and not info.name.endswith("__main__")
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


def functions_of(owner):
    """The public functions in a module or class, by name; properties as their getters."""
    for name, value in vars(owner).items():
        value = getattr(
            value, "__func__", getattr(value, "fget", value)
        )  # static and class methods
        if inspect.isfunction(value) and not name.startswith("_"):
            yield name, value


def everything():
    """Each class, function and method without an underscore, with its name."""
    for module in MODULES:
        values = {n: v for n, v in vars(module).items() if not n.startswith("_")}
        own = [v for v in values.values() if getattr(v, "__module__", None) == module.__name__]
        for value in own:
            if inspect.isclass(value):
                yield f"{module.__name__}.{value.__name__}", value
                for name, method in functions_of(value):
                    yield f"{module.__name__}.{value.__name__}.{name}", method
            elif inspect.isfunction(value):
                yield f"{module.__name__}.{value.__name__}", value


@pytest.mark.parametrize(
    "value", [pytest.param(value, id=name) for name, value in dict(everything()).items()]
)
def test_has_a_docstring_of_its_own(value):
    """Not one that a base class lends it, as `inspect.getdoc` would find."""
    text = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert text, "no docstring"
    # What a dataclass gives itself.
    assert not text.startswith(f"{value.__name__}("), "no docstring"


NOTHING = (None, "None", NoReturn, inspect.Signature.empty)
FACE = ("fold", "init", "interop", "memory", "norm", "onnx")
# What nn.Module says of these is all there is to say.
OF_TORCH = {"extra_repr", "reset_parameters", "flatten_parameters"}


def face():
    """Each class, function and method that a user calls, with its name."""
    found = {name: getattr(fastindrnn, name) for name in fastindrnn.__all__}
    for name in FACE:
        module = getattr(fastindrnn, name)
        names = getattr(module, "__all__", None) or [
            n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        found |= {n: getattr(module, n) for n in names if n[0] != "_"}
    for name, value in found.items():
        if inspect.isclass(value):
            yield name, value
            for method, function in functions_of(value):
                if method not in OF_TORCH:
                    yield f"{name}.{method}", function
        elif inspect.isfunction(value):
            yield name, value


def sections(value):
    """The text of a docstring by section, and the arguments that it describes."""
    text = inspect.cleandoc(value.__doc__)
    parts = re.split(r"^(Args|Attributes|Returns|Raises|Source|Example):(.*)$", text, flags=re.M)
    found = {title: head + body for title, head, body in zip(*[iter(parts[1:])] * 3, strict=True)}
    arguments = textwrap.dedent(found.get("Args", "").strip("\n").split("\n\n")[0])
    entries = re.split(r"\n(?! )", re.sub(r"\n +", " ", arguments)) if arguments else []
    return found, [name.strip() for entry in entries for name in entry.split(":")[0].split(",")]


def can_raise(value):
    """Whether it raises something itself, or calls a function that checks and refuses."""
    if inspect.isclass(value) and (
        "__init__" not in vars(value) or "__dataclass_fields__" in vars(value)
    ):
        return False
    function = value.__init__ if inspect.isclass(value) else value
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {getattr(node, "id", getattr(node, "attr", "")) for node in called}
    return any(isinstance(node, ast.Raise) for node in ast.walk(tree)) or any(
        re.match("_?(check|refuse)_", name) for name in names
    )


@pytest.mark.parametrize("value", [pytest.param(v, id=n) for n, v in dict(face()).items()])
def test_says_what_it_takes_returns_and_raises(value):
    found, described = sections(value)
    signature = inspect.signature(value)
    if value not in (fastindrnn.Stack,):  # which has no arguments of its own
        arguments = [name for name in signature.parameters if name != "self"]
        assert sorted(described) == sorted(arguments)
    returns = signature.return_annotation
    if inspect.isfunction(value) and returns not in NOTHING:
        one_line = found == {} and "\n" not in inspect.cleandoc(value.__doc__)
        assert "Returns" in found or (one_line and not described), "no Returns"
    if can_raise(value):
        assert "Raises" in found, "no Raises"
