"""fastindrnn::stack, plain layers as one operator, against the same layers one by one."""

import contextlib
import copy
import subprocess
import sys

import pytest
import torch
from scan_cases import Case, inputs, public_options
from torch.nn.utils.rnn import pack_sequence

from fastindrnn import IndRNN
from fastindrnn import plan as planning
from fastindrnn.functional import indrnn, run_stack
from fastindrnn.options import WHOLE, Bounds, Parameters, Recurrence

FORMS = ["padded", "time first", "lengths", "packed"]
every_form = pytest.mark.parametrize("form", FORMS)


def case_of(form, L=3, K=5, N=4, **fields):
    """x, weights, biases, us, h0 (L, B, N) as leaves in float64, and the options; padding is 0."""
    form, time_first = ("padded", True) if form == "time first" else (form, False)
    case = Case(3, 7, K, form=form, time_first=time_first, dtype=torch.float64, **fields)
    (x, *_, options), _ = inputs(case)
    x, options = x.nan_to_num(0), public_options(options)
    generator = torch.Generator().manual_seed(case.seed + 1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    weights = [normal(N, K if layer == 0 else N) for layer in range(L)]
    biases, us = [normal(N) for _ in range(L)], [normal(N) for _ in range(L)]
    return x.requires_grad_(), weights, biases, us, normal(L, 3, N), options


def ways(options, grad_clip=None):
    """The operator, and what it stands for, with these options."""
    bounds = Bounds(*[options.get(name) for name in ("lengths", "cu_seqlens", "resets")])
    recurrence = Recurrence(options["nonlinearity"], options["direction"], grad_clip)

    def stack(x, weights, biases, us, h0):
        biases = biases or [None] * len(us)
        layers = [Parameters(*layer) for layer in zip(weights, biases, us, strict=True)]
        return run_stack(x, layers, h0, bounds, recurrence)

    def one_by_one(x, weights, biases, us, h0):
        ends = []
        for layer, (weight, u) in enumerate(zip(weights, us, strict=True)):
            bias = biases[layer] if biases else None
            state = None if h0 is None else h0[layer]
            x, h_n = indrnn(x, weight, bias, u, state, **options, grad_clip=grad_clip)
            ends.append(h_n)
        return x, torch.stack(ends)

    return stack, one_by_one


def leaves(x, weights, biases, us, h0):
    return [tensor for tensor in (x, *weights, *biases, *us, h0) if tensor is not None]


def loss_of(h, h_n):
    return h.sin().sum() + h_n.cos().sum()


@pytest.mark.parametrize("grad_clip", [None, 0.7])
@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "identity", "tanh"])
@pytest.mark.parametrize("reverse", [False, True])
@every_form
def test_equals_layers_one_by_one(form, reverse, nonlinearity, grad_clip):
    """Outputs, first and second derivatives, h0 and resets, every form and clip."""
    fields = {"reverse": reverse, "nonlinearity": nonlinearity, "has_resets": True}
    *arguments, options = case_of(form, **fields)
    both_ways = ways(options, grad_clip)
    wanted, results = leaves(*arguments), []
    for way in both_ways:
        h, h_n = way(*arguments)
        # Once as in training, where the fused backward runs, once to be differentiated again.
        plain = torch.autograd.grad(loss_of(h, h_n), wanted, retain_graph=True)
        first = torch.autograd.grad(loss_of(h, h_n), wanted, create_graph=True)
        norm = sum(grad.square().sum() for grad in first) + 0 * loss_of(h, h_n)
        second = torch.autograd.grad(norm, wanted)
        results.append((h, h_n, *plain, *first, *second))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize("has_h0", [False, True])
def test_finite_differences(has_h0, has_biases):
    x, weights, biases, us, h0, options = case_of("padded", L=2, K=2, N=2)
    x = x[:2, :3].detach().requires_grad_()
    biases, h0 = biases if has_biases else [], h0[:, :2].detach() if has_h0 else None
    h0 = None if h0 is None else h0.requires_grad_()
    wanted = leaves(x, weights, biases, us, h0)

    def call(*values):
        values = iter(values)
        parts = [[next(values) for _ in part] for part in ([x], weights, biases, us)]
        stack, _ = ways(options)
        return stack(parts[0][0], *parts[1:], None if h0 is None else next(values))

    assert torch.autograd.gradcheck(call, wanted)
    assert torch.autograd.gradgradcheck(call, wanted)


@pytest.mark.parametrize("which", ["h", "h_n"])
def test_gradient_of_one_output_alone(which):
    *arguments, options = case_of("lengths")
    grads = []
    for way in ways(options):
        output = way(*arguments)[which == "h_n"]
        grads.append(torch.autograd.grad(output.sum(), leaves(*arguments), materialize_grads=True))
    torch.testing.assert_close(*grads)


def test_frozen_layers():
    """Gradients of a part of the arguments: an adapter's first layer, its input, one u."""
    x, weights, biases, us, h0, options = case_of("padded")
    for tensor in (x, *weights, *biases, *us, h0):
        tensor.requires_grad_(False)
    for wanted in ([weights[0]], [x], [us[1], biases[2]], [weights[2]], [h0]):
        for tensor in wanted:
            tensor.requires_grad_()
        grads = []
        for way in ways(options):
            h, h_n = way(x, weights, biases, us, h0)
            grads.append(torch.autograd.grad(loss_of(h, h_n), wanted))
        torch.testing.assert_close(*grads)
        for tensor in wanted:
            tensor.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form, dtype):
    *tensors, options = case_of(form, has_resets=True)
    x, weights, biases, us, h0 = (
        [y.detach().to(dtype).requires_grad_() for y in tensor]
        if isinstance(tensor, list)
        else tensor.detach().to(dtype).requires_grad_()
        for tensor in tensors
    )
    sequences = [options.get(name) for name in ("lengths", "cu_seqlens", "resets")]
    end = ("relu", "forward", None, "auto")
    operator = torch.ops.fastindrnn.stack
    torch.library.opcheck(operator, (x, weights, biases, us, h0, *sequences, *end))
    torch.library.opcheck(operator, (x, weights, [], us, None, *sequences, *end))
    _, _, between = operator(x, weights, biases, us, h0, *sequences, *end)
    arguments = between[1], weights[1], h0[0], between[0], us[0], h0[0]
    arguments = [tensor.detach().clone() for tensor in arguments]
    operator = torch.ops.fastindrnn.projected_backward
    torch.library.opcheck(operator, (*arguments, *sequences, "relu", "reverse", 1.0, "auto"))


@contextlib.contextmanager
def counted(monkeypatch):
    """Calls of the stack's operator, made in the meantime by a layer."""
    from fastindrnn import layers

    calls = []

    def run(*arguments):
        calls.append(1)
        return run_stack(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(layers, "run_stack", run)
        yield calls


def results(module, x, **options):
    output, h_n = module(x, **options)
    rows = output if isinstance(output, torch.Tensor) else output.data
    parameters = list(module.parameters())
    return rows.detach(), h_n.detach(), *torch.autograd.grad(loss_of(rows, h_n), parameters)


@contextlib.contextmanager
def without_it(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(planning, "_STACK", planning._INFERENCE)
        yield


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"grad_clip": 0.1}, {"dropout": 0.5}])
def test_layers_use_it_for_training(monkeypatch, options, batch_first):
    """And give the same without it. With a dropout that acts, and in inference, they do not."""
    module = IndRNN(5, 6, 3, batch_first=batch_first, **options).double()
    x, hx = torch.randn(4, 3, 5).double(), torch.randn(3, 3 if not batch_first else 4, 6).double()
    with counted(monkeypatch) as calls:
        module(x)
        assert len(calls) == (0 if options.get("dropout") else 1)
        module.eval()
        actual = results(module, x, hx=hx)
        assert calls.pop()
        calls.clear()
        with torch.no_grad():
            module(x)
        assert not calls
    with without_it(monkeypatch):
        torch.testing.assert_close(results(module, x, hx=hx), actual)


def test_packed_sequences(monkeypatch):
    module = IndRNN(5, 6, 3).double()
    packed = pack_sequence([torch.randn(n, 5).double() for n in (3, 6, 1)], enforce_sorted=False)
    actual = results(module, packed)
    with without_it(monkeypatch):
        torch.testing.assert_close(results(module, packed), actual)


def test_compile():
    """Without a graph break, forward and backward, with and without lengths."""
    module, x = IndRNN(5, 6, 3, grad_clip=1.0), torch.randn(9, 3, 5)
    for options in ({}, {"lengths": torch.tensor([9, 4, 0])}):
        expected = results(copy.deepcopy(module), x, **options)
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True)
        torch.testing.assert_close(results(compiled, x, **options), expected, rtol=1e-4, atol=1e-4)


def test_export_of_the_operator():
    class Stack(torch.nn.Module):
        def forward(self, x, weights, us):
            layers = [Parameters(weight, None, u) for weight, u in zip(weights, us, strict=True)]
            return run_stack(x, layers, None, WHOLE, Recurrence(direction="reverse"))

    x, weights, us = torch.randn(2, 7, 4), [torch.randn(4, 4)] * 2, [torch.rand(4)] * 2
    dims = {"x": {1: torch.export.Dim("T", min=2)}, "weights": [None] * 2, "us": [None] * 2}
    program = torch.export.export(Stack(), (x, weights, us), dynamic_shapes=dims, strict=False)
    assert any("stack" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(2, 11, 4)
    actual = program.module()(x, weights, us)
    torch.testing.assert_close(actual, Stack()(x, weights, us))


def test_autocast_and_mixed_precision():
    """Products in bfloat16, u and the parameters' gradients in float32, with a gradient scaler."""
    module, x = IndRNN(5, 6, 3), torch.randn(9, 4, 5)
    expected = results(module, x)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, h_n = module(x)
        assert output.dtype == h_n.dtype == torch.bfloat16
        scaler.scale(loss_of(output.float(), h_n.float())).backward()
    for parameter, grad in zip(module.parameters(), expected[2:], strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad / 16 - grad).norm() <= 0.1 * grad.norm() + 1e-3


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    module, x = IndRNN(5, 6, 3), torch.randn(9, 3, 5, requires_grad=True)
    expected = results(module, x.detach())
    output, h_n = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant)
    loss_of(output, h_n).backward()
    torch.testing.assert_close([p.grad for p in module.parameters()], list(expected[2:]))


def test_functional_call_and_copies():
    module, other, x = IndRNN(5, 6, 3), IndRNN(5, 6, 3), torch.randn(9, 3, 5)
    state = dict(other.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(module, state, x), other(x))
    torch.testing.assert_close(copy.deepcopy(other)(x), other(x))


@pytest.mark.parametrize("mapped_input", [False, True])
def test_vmap_over_models(mapped_input):
    """A batch of models side by side (stack_module_state), forward and backward."""
    models = [IndRNN(5, 6, 3, batch_first=True).double() for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(models)
    x = torch.randn(3, 4, 9, 5) if mapped_input else torch.randn(4, 9, 5)
    x, hx, lengths = x.double(), torch.randn(3, 4, 6).double(), torch.tensor([9, 4, 0, 1])

    def loss(parameters, x):
        output = torch.func.functional_call(models[0], parameters, (x, hx), {"lengths": lengths})
        return loss_of(*output)

    total = torch.vmap(loss, (0, 0 if mapped_input else None))(parameters, x).sum()
    grads = torch.autograd.grad(total, list(parameters.values()))
    for i, model in enumerate(models):
        output = model(x[i] if mapped_input else x, hx, lengths=lengths)
        alone = torch.autograd.grad(loss_of(*output), list(model.parameters()))
        torch.testing.assert_close([grad[i] for grad in grads], list(alone))


@pytest.mark.parametrize("form", FORMS)
def test_many_gradients_at_once(form):
    """vmap over the backward, as the rows of a Jacobian are computed."""
    *arguments, options = case_of(form, has_resets=True)
    h, h_n = ways(options, 0.7)[0](*arguments)
    seeds = torch.randn(3, *h.shape).double(), torch.randn(3, *h_n.shape).double()
    wanted = leaves(*arguments)
    together = torch.autograd.grad(
        (h, h_n), wanted, seeds, is_grads_batched=True, retain_graph=True
    )
    for i in range(3):
        alone = torch.autograd.grad(
            (h, h_n), wanted, [seed[i] for seed in seeds], retain_graph=True
        )
        torch.testing.assert_close([grad[i] for grad in together], list(alone))


def test_meta_device():
    module = IndRNN(5, 6, 3, device="meta")
    output, h_n = module(torch.empty(9, 3, 5, device="meta"))
    assert (output.shape, h_n.shape) == ((9, 3, 6), (3, 3, 6))


_DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from fastindrnn import IndRNN

def main(rank, world, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    module = IndRNN(5, 6, 3)
    x = torch.randn(9, 4, 5)
    expected = torch.autograd.grad(module(x)[0].square().mean(), list(module.parameters()))
    parallel = DistributedDataParallel(module)
    parallel(x[:, 2 * rank : 2 * rank + 2])[0].square().mean().backward()
    for parameter, grad in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (2, sys.argv[1]), 2)
"""


def test_distributed_data_parallel(tmp_path):
    script = tmp_path / "distributed.py"
    script.write_text(_DISTRIBUTED)
    command = [sys.executable, str(script), str(tmp_path / "store")]
    subprocess.run(command, check=True, timeout=600)  # it could hang


def test_wrong_shapes_are_an_error():
    """Also where a parameter was replaced after the layer was made."""
    module = IndRNN(5, 6, 3)
    module.weight_hh_l1 = torch.nn.Parameter(torch.rand(7))
    with pytest.raises(ValueError, match=r"u must be \(6,\), but is \(7,\)"):
        module(torch.randn(9, 3, 5))
    with pytest.raises(TypeError, match=r"weight must be torch\.float64"):
        IndRNN(5, 6, 3)(torch.randn(9, 3, 5).double())
