"""What a user sees of the layers: sizes, representations, the base class, clear errors."""

import inspect
import pydoc
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastindrnn
from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, IndRNNCell, ResidualIndRNN, Stack
from fastindrnn.init import identity_, normal_, uniform_

STACKS = {
    "layers": lambda **options: IndRNN(5, 6, 2, **options),
    "both directions": lambda **options: IndRNN(5, 6, 2, bidirectional=True, **options),
    "residual": lambda **options: ResidualIndRNN(5, 6, 1, **options),
    "dense": lambda **options: DenseIndRNN(5, 2, (2,), **options),
    "both ways": lambda **options: Bidirectional(lambda: DenseIndRNN(5, 2, (2, 1), **options)),
}
every_stack = pytest.mark.parametrize("make", STACKS.values(), ids=STACKS.keys())
ONE_WAY = {name: make for name, make in STACKS.items() if not name.startswith("both")}


@every_stack
def test_stacks_and_their_sizes(make):
    stack = make(batch_first=True)
    assert isinstance(stack, Stack)
    assert stack(torch.randn(3, 4, stack.input_size))[0].shape == (3, 4, stack.output_size)
    assert not isinstance(IndRNNCell(5, 6), Stack)


# For each argument a value that is not the default, beside the sizes.
OTHER = {
    "num_layers": 3,
    "num_blocks": 2,
    "growth": 3,
    "blocks": (2, 1),
    "nonlinearity": "tanh",
    "bias": False,
    "batch_first": True,
    "dropout": 0.25,
    "bidirectional": True,
    "first_features": 0,
    "last_features": 7,
    "zoneout": 0.125,
    "norm": partial(nn.BatchNorm1d, eps=0.001),
    "norm_position": "before",
    "norm_steps": 9,
    "recurrent_max": 1.5,
    "recurrent_init": partial(uniform_, high=0.5),
    "grad_clip": 2.0,
    "grad_clip_mode": "result",
}
KINDS = [IndRNN, IndRNNCell, ResidualIndRNN, DenseIndRNN]
WRITTEN = {"partial": partial, "BatchNorm1d": nn.BatchNorm1d, "LayerNorm": nn.LayerNorm}
WRITTEN |= {kind.__name__: kind for kind in KINDS} | {"uniform_": uniform_, "normal_": normal_}


def optional(kind):
    parameters = inspect.signature(kind).parameters.values()
    places = ("device", "dtype")
    return [p.name for p in parameters if p.default is not p.empty and p.name not in places]


def written(module):
    return f"{type(module).__name__}({module.extra_repr()})"


ARGUMENTS = [(kind, name) for kind in KINDS for name in optional(kind)]


@pytest.mark.filterwarnings("ignore:dropout acts between layers")
@pytest.mark.parametrize(("kind", "name"), ARGUMENTS)
def test_the_representation_is_the_call(kind, name):
    """A new argument of a constructor fails here until it has a value above."""
    options = {name: OTHER[name]}
    if name == "norm_steps":
        options["norm"] = "batch_per_step"
    if name == "grad_clip_mode":
        options["grad_clip"] = 1.0
    sizes = (5,) if kind is DenseIndRNN else (5, 6)
    module = kind(*sizes, **options)
    text = written(module)
    assert f"{name}=" in text
    again = eval(text, WRITTEN)
    assert written(again) == text
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    (first,) = repr(module).splitlines()[:1]
    assert first.startswith(f"{kind.__name__}(")
    assert text[:-1].partition("(")[2] in repr(module)


@pytest.mark.parametrize("kind", KINDS)
def test_the_representation_without_options_has_the_sizes_alone(kind):
    sizes = (5,) if kind is DenseIndRNN else (5, 6)
    assert written(kind(*sizes)) == f"{kind.__name__}{sizes}".replace(",)", ")")
    inits = [partial(uniform_, high=0.5), None]
    text = written(IndRNN(5, 6, 2, recurrent_init=inits))
    assert text == "IndRNN(5, 6, num_layers=2, recurrent_init=[partial(uniform_, high=0.5), None])"
    text = written(IndRNN(5, 6, 2, recurrent_init=tuple(inits)))
    assert text.endswith("recurrent_init=(partial(uniform_, high=0.5), None))")
    assert written(IndRNN(5, 6, recurrent_init=(uniform_,))).endswith("recurrent_init=(uniform_,))")


def chunks(stack, x, **options):
    """Two halves of the input, the second from the states of the first."""
    half = len(x) // 2
    first, state = stack(x[:half])
    second, state = stack(x[half:], state, **options)
    return torch.cat([first, second]), state


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", ONE_WAY.values(), ids=ONE_WAY.keys())
def test_norms_of_each_step_in_chunks(make, training):
    """With the step that a chunk begins with they are those of the whole pass; without it, an
    error. In float64, because a norm divides rounding errors by the deviation of 4 rows."""
    stack = make(norm="batch_per_step", norm_steps=8, dtype=torch.float64)
    stack(torch.randn(8, 4, 5, dtype=torch.float64))
    state = {name: value.clone() for name, value in stack.state_dict().items()}
    x = torch.randn(8, 4, 5, dtype=torch.float64)
    expected = stack.train(training)(x)
    learned = {name: value.clone() for name, value in stack.state_dict().items()}
    stack.load_state_dict(state)
    torch.testing.assert_close(chunks(stack, x, time_step=4), expected)
    torch.testing.assert_close(dict(stack.state_dict()), learned)
    with pytest.raises(ValueError, match="time_step must say which step of its sequence"):
        chunks(stack, x)
    with pytest.raises(ValueError, match="time_step must say which step"):
        stack.step(x[4], expected[1])
    packed = pack_sequence([x[4:, b] for b in range(4)])
    output, _ = stack(packed, stack(x[:4])[1], time_step=4)
    if not training:
        torch.testing.assert_close(output.data, expected[0][4:].flatten(0, 1))
    for wrong, error in ((-1, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="time_step must be"):
            stack(x, time_step=wrong)


@pytest.mark.parametrize("make", ONE_WAY.values(), ids=ONE_WAY.keys())
def test_a_step_in_training_mode(make):
    """Batch norm has no statistics of a step; norms per step have, and no norm needs none.

    In float64, because a norm divides rounding errors by the deviation of as few as 2 features.
    """
    make = partial(make, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    stack = make(norm="batch")
    with pytest.raises(ValueError, match=r"batch norm .*norm.* is in training mode.*call eval"):
        stack.step(x)
    stack.eval().step(x)
    for options in ({"norm": None}, {"norm": "layer"}, {"norm": "batch_per_step"}):
        if options["norm"] == "batch_per_step":
            options["norm_steps"] = 3
        stack = make(**options)
        expected = stack(x[None])[0][0]
        torch.testing.assert_close(stack.step(x)[0], expected)
    frozen = make(norm="batch")
    for part in frozen.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.eval()
    frozen.step(x)


INIT = [0.5, "uniform", {None}, 3]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda kind: kind(5, 6, dtype=torch.int64), ValueError, "dtype must be float32.*int64"),
        (lambda kind: kind(5, 6, dtype="float32"), TypeError, "dtype must be a torch.dtype.*str"),
        *(
            (lambda kind, i=i: kind(5, 6, recurrent_init=i), TypeError, "recurrent_init must be a")
            for i in INIT
        ),
        (
            lambda kind: kind(5, 6)(torch.ones(4, 5, dtype=torch.int64)),
            TypeError,
            r"input must be float32, .* but is torch\.int64",
        ),
        (
            lambda kind: kind(5, 6)(torch.ones(4, 3, dtype=torch.int64)),  # numbers of words
            TypeError,
            r"input must be float32, .* but is torch\.int64",
        ),
        (
            lambda kind: kind(5, 6)(torch.ones(4, 5), (torch.ones(1), torch.ones(1))),
            TypeError,
            r"hx must be a tensor, but is tuple: there is no c .* pass h alone",
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments(kind, call, error, words):
    with pytest.raises(error, match=words) as caught:
        call(kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", ONE_WAY.values(), ids=ONE_WAY.keys())
def test_wrong_steps(make):
    stack = make().eval()
    with pytest.raises(TypeError, match=r"x_t must be float32, .* but is torch\.int64"):
        stack.step(torch.ones(3, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"state must be a tensor, but is tuple: .* pass h alone"):
        stack.step(torch.ones(3, 5), (torch.ones(1), torch.ones(1)))


def test_recurrent_init_of_one_layer_in_a_list():
    with pytest.raises(TypeError, match="recurrent_init must hold a function or None"):
        IndRNN(5, 6, 2, recurrent_init=[identity_, 0.5])


def test_the_base_class_is_public():
    assert fastindrnn.Stack is Stack
    assert {"input_size", "output_size", "batch_first"} <= set(Stack.__annotations__)


PUBLIC = """
Bidirectional DenseIndRNN IndRNN IndRNNCell ResidualIndRNN Stack __version__ backend constrain_
constrain_after_step fold functional indrnn indrnn_scan init interop last_output memory norm onnx
parameter_groups recurrent_max_for
"""


def test_public_names():
    """And no other: modules that are parts of the package are not shown."""
    assert dir(fastindrnn) == sorted(PUBLIC.split())
    assert all(hasattr(fastindrnn, name) for name in dir(fastindrnn))
    text = pydoc.render_doc(fastindrnn, renderer=pydoc.plaintext)
    sections = text.partition("PACKAGE CONTENTS")[2].partition("CLASSES")[2]
    shown = [n for n in dir(fastindrnn) if not inspect.ismodule(getattr(fastindrnn, n))]
    assert not [name for name in shown if name[0] != "_" and name not in sections]
    assert not hasattr(IndRNN, "run_sequences")
    inside = ["check_sizes", "describe_arguments", "prepare_input"]
    assert not [name for name in inside if name in sections]
    with pytest.raises(AttributeError, match="module 'fastindrnn' has no attribute 'lstm'"):
        fastindrnn.lstm  # noqa: B018


WITHOUT = """
import sys
for name in ("einops", "onnxscript", "matplotlib"):
    sys.modules[name] = None  # as if it were not installed
import torch, fastindrnn
from fastindrnn.__main__ import main
rnn = fastindrnn.ResidualIndRNN(3, 4, 1)
rnn(torch.randn(5, 2, 3))[0].sum().backward()
fastindrnn.fold.fold_norms(rnn).step(torch.randn(2, 3))
fastindrnn.onnx
assert main([]) == 0
"""


def test_layers_and_the_report_do_without_packages_for_tools():
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
