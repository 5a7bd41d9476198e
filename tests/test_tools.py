"""The operators under PyTorch's tools: FLOP counter, profiler, torch.func."""

import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fastindrnn
from fastindrnn import IndRNN, IndRNNCell
from fastindrnn import plan as planning
from fastindrnn.functional import indrnn, indrnn_scan

B, T, K, N = 3, 7, 5, 4
ROWS = B * T
SCAN, SCAN_BACKWARD = 2 * ROWS * N, 4 * ROWS * N


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("packed", [False, True])
def test_flops_of_the_scan(packed):
    a, options = torch.randn(B, T, N, requires_grad=True), {}
    if packed:
        a, options["cu_seqlens"] = a.flatten(0, 1), torch.tensor([0, 3, 3, ROWS])
    u = torch.rand(N)
    assert counted(lambda: indrnn_scan(a, u, **options)) == SCAN
    assert counted(lambda: indrnn_scan(a, u, **options)[0].sum().backward()) == SCAN + SCAN_BACKWARD
    with torch.no_grad():
        assert counted(lambda: indrnn_scan(a, u, **options)) == SCAN


@pytest.mark.parametrize("needs_weight", [False, True])
@pytest.mark.parametrize("needs_x", [False, True])
def test_flops_of_a_layer(needs_x, needs_weight):
    """The product once forward, and once for each gradient that is computed."""
    x, weight = torch.randn(B, T, K, requires_grad=needs_x), torch.randn(N, K)
    weight.requires_grad_(needs_weight)
    u, product = torch.rand(N, requires_grad=True), 2 * ROWS * K * N
    assert counted(lambda: indrnn(x, weight, None, u)) == product + SCAN
    with torch.no_grad():
        assert counted(lambda: indrnn(x, weight, None, u)) == product + SCAN
    products = (1 + needs_x + needs_weight) * product
    step = counted(lambda: indrnn(x, weight, None, u)[0].sum().backward())
    assert step == products + SCAN + SCAN_BACKWARD


def test_flops_of_a_stack():
    """The same as layer by layer, also where its backward has the products in the operator."""
    module, x = IndRNN(K, N, 3), torch.randn(T, B, K, requires_grad=True)
    first, other = 2 * ROWS * K * N, 2 * ROWS * N * N
    forward, backward = first + 2 * other + 3 * SCAN, 2 * (first + 2 * other) + 3 * SCAN_BACKWARD
    assert counted(lambda: module(x)[0].sum().backward()) == forward + backward
    with mock.patch.object(planning, "_STACK", planning._INFERENCE):
        assert counted(lambda: module(x)[0].sum().backward()) == forward + backward
    with torch.no_grad():
        assert counted(lambda: module(x)) == forward
        # A step is operations of PyTorch, of which the counter counts the products.
        assert counted(lambda: module.step(x[0])) == (forward - 3 * SCAN) // T


def test_every_operator_has_a_formula():
    """But the one that computes nothing."""
    names = {
        name.removeprefix("fastindrnn::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastindrnn::")
    } - {"clip_gradient"}
    assert all(getattr(torch.ops.fastindrnn, name) in flop_registry for name in names)


@pytest.mark.parametrize("counter_first", [False, True])
def test_the_counter_may_be_imported_before_or_after(counter_first, tmp_path):
    imports = ["import fastindrnn", "from torch.utils.flop_counter import FlopCounterMode"]
    script = f"""if True:
        import sys, torch
        {"; ".join(reversed(imports) if counter_first else imports)}
        a, u = torch.randn(1, 3, 2), torch.rand(2)
        with FlopCounterMode(display=False) as counter:
            fastindrnn.functional.indrnn_scan(a, u)
        assert counter.get_total_flops() == 12
        assert not any("fastindrnn" in type(finder).__module__ for finder in sys.meta_path)
    """
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_profiler_names_the_recurrence(mode):
    """In inference too. A step is operations of PyTorch: it names those."""
    layer, cell, stack = IndRNN(K, N), IndRNNCell(K, N), IndRNN(K, N, 2)
    x, u = torch.randn(T, B, K), torch.rand(K)
    calls = [
        ("fastindrnn::indrnn", lambda: layer(x)),
        ("aten::linear", lambda: layer.step(x[0])),
        ("aten::linear", lambda: cell(x[0])),
        ("fastindrnn::scan", lambda: indrnn_scan(x, u)),
        (f"fastindrnn::{'stack' if mode is torch.enable_grad else 'indrnn'}", lambda: stack(x)),
    ]
    for name, call in calls:
        with mode(), torch.profiler.profile() as profiler:
            call()
        assert name in {event.key for event in profiler.key_averages()}


# In float64, because the terms of a gradient may cancel.
STACK = IndRNN(K, K, 2, dtype=torch.float64)
WEIGHT, BIAS = torch.randn(K, K, dtype=torch.float64), torch.randn(K, dtype=torch.float64)
U = torch.rand(K, dtype=torch.float64)
DIFFERENTIATED = {
    "scan": lambda x: indrnn_scan(x, U)[0].square().sum(),
    "layer": lambda x: indrnn(x, WEIGHT, BIAS, U)[0].square().sum(),
    "clipped results": lambda x: indrnn(
        x, WEIGHT, BIAS, U, grad_clip=0.3, grad_clip_mode="result"
    )[0].square().sum(),
    "stack": lambda x: STACK(x)[0].square().sum(),
}  # fmt: skip


@pytest.mark.parametrize("transform", ["grad", "vjp", "jacrev", "vmap of grad", "grad of vmap"])
@pytest.mark.parametrize("call", DIFFERENTIATED.values(), ids=DIFFERENTIATED.keys())
def test_torch_func_names_the_way_out(call, transform):
    transforms = {
        "grad": torch.func.grad(call),
        "vjp": lambda x: torch.func.vjp(call, x),
        "jacrev": torch.func.jacrev(call),
        "vmap of grad": lambda x: torch.vmap(torch.func.grad(call))(x[None]),
        "grad of vmap": lambda x: torch.func.grad(lambda x: torch.vmap(call)(x).sum())(x[None]),
    }
    with pytest.raises(NotImplementedError, match=r"torch\.autograd\.grad.*backend 'reference'"):
        transforms[transform](torch.randn(B, T, K, dtype=torch.float64))


@pytest.mark.parametrize("name", ["scan", "layer", "clipped results"])
def test_the_ways_out_of_torch_func(name):
    """The reference under torch.func.grad is what torch.autograd.grad computes; what is not
    differentiated goes through the kernels."""
    call, x = DIFFERENTIATED[name], torch.randn(B, T, K, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(call(x), x)
    x = x.detach()
    with fastindrnn.backend("reference"):
        torch.testing.assert_close(torch.func.grad(call)(x), expected)
        each = torch.vmap(torch.func.grad(call))(x[:, None])[:, 0]
        torch.testing.assert_close(each, expected)

    def constant(scale):
        return scale * call(x)

    torch.testing.assert_close(torch.func.grad(constant)(torch.tensor(2.0).double()), call(x))
