"""Micro-benchmarks against regressions: the time of each call, before and after a change.

    pytest bench --benchmark-save before        then, after the change,
    pytest bench --benchmark-compare --benchmark-compare-fail median:10%

Each group is one size; nn.Linear stands beside the layer, as what does not change. Whether results
are right is what tests/ checks, and what peers take is what `python -m bench speed` measures.
"""

import pytest
import torch
from torch import nn

from fastindrnn import IndRNN
from fastindrnn.functional import indrnn_scan

FEW = [(32, 256, 128), (32, 1024, 128), (16, 784, 512), (1, 65536, 256), (1024, 20, 512)]
MORE = [(32, 512, 128), (32, 1024, 512), (8, 4096, 1024), (128, 150, 2000), (1, 1048576, 256)]
DTYPES = [torch.float32, torch.bfloat16]


def pytest_generate_tests(metafunc):
    """Every size, and on a GPU every dtype: on CPUs bfloat16 is there to be right, not fast."""
    gpu = metafunc.config.getoption("device").startswith("cuda")
    sizes = FEW + MORE if gpu or metafunc.config.getoption("all_sizes") else FEW
    dtypes = DTYPES if gpu else DTYPES[:1]
    metafunc.parametrize("sizes", sizes, ids=lambda sizes: "x".join(map(str, sizes)))
    metafunc.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def measure(benchmark, request, sizes, dtype):
    """Times a function, with the GPU's work if there is one."""
    device = torch.device(request.config.getoption("device"))
    benchmark.group = f"{', '.join(map(str, sizes))}; {str(dtype).removeprefix('torch.')}"

    def run(function):
        def finished():
            result = function()
            torch.cuda.synchronize(device)
            return result

        timed = finished if device.type == "cuda" else function
        timed()  # compiles
        benchmark(timed)

    return run


@pytest.fixture
def draw(request, sizes, dtype):
    """So many normal (B, T, N)."""
    device = torch.device(request.config.getoption("device"))
    generator = torch.Generator(device).manual_seed(0)

    def normal(count):
        options = {"dtype": dtype, "device": device, "generator": generator}
        return [torch.randn(*sizes, **options) for _ in range(count)]

    return normal


@pytest.fixture
def make(request, sizes, dtype):
    """A layer, or nn.Linear, from N features to N channels."""
    options = {"dtype": dtype, "device": request.config.getoption("device")}
    N = sizes[-1]

    def module(kind):
        if kind == "layer":
            return IndRNN(N, N, batch_first=True, **options)
        return nn.Linear(N, N, **options)

    return module


def test_scan_forward(measure, draw):
    (a,) = draw(1)
    u = torch.rand_like(a[0, 0])
    measure(lambda: indrnn_scan(a, u))


def test_scan_backward(measure, draw):
    a, grad = draw(2)
    u = torch.rand_like(a[0, 0])
    h, _ = indrnn_scan(a.requires_grad_(), u.requires_grad_())
    measure(lambda: torch.autograd.grad(h, (a, u), grad, retain_graph=True))


@pytest.mark.parametrize("kind", ["layer", "linear"])
def test_forward(measure, draw, make, kind):
    (x,), module = draw(1), make(kind)
    measure(torch.no_grad()(lambda: module(x)))


@pytest.mark.parametrize("kind", ["layer", "linear"])
def test_training_step(measure, draw, make, kind):
    (x, grad), module = draw(2), make(kind)
    x.requires_grad_()

    def step():
        result = module(x)
        result = result[0] if isinstance(result, tuple) else result
        return torch.autograd.grad(result, [x, *module.parameters()], grad)

    measure(step)
