"""fastindrnn::stack, plain layers as one operator, against the same layers one by one."""

import pytest
import torch
from scan_cases import Case, inputs, loss_of, public_options

from fastindrnn import IndRNN
from fastindrnn.functional import indrnn, run_stack
from fastindrnn.options import Extents, Parameters, Recurrence

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
    extents = Extents(*[options.get(name) for name in ("lengths", "cu_seqlens", "resets")])
    recurrence = Recurrence(options["nonlinearity"], options["direction"], grad_clip)

    def stack(x, weights, biases, us, h0):
        biases = biases or [None] * len(us)
        layers = [Parameters(*layer) for layer in zip(weights, biases, us, strict=True)]
        return run_stack(x, layers, h0, extents, recurrence)

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


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("padded", torch.float32),
        ("time first", torch.bfloat16),
        ("lengths", torch.bfloat16),
        ("packed", torch.float32),
        pytest.param("padded", torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("time first", torch.float32, marks=pytest.mark.slow),
        pytest.param("lengths", torch.float32, marks=pytest.mark.slow),
        pytest.param("packed", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
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


def test_wrong_shapes_are_an_error():
    """Also where a parameter was replaced after the layer was made."""
    module = IndRNN(5, 6, 3)
    module.weight_hh_l1 = torch.nn.Parameter(torch.rand(7))
    with pytest.raises(ValueError, match=r"u must be \(6,\), but is \(7,\)"):
        module(torch.randn(9, 3, 5))
    with pytest.raises(TypeError, match=r"weight must be torch\.float64"):
        IndRNN(5, 6, 3)(torch.randn(9, 3, 5).double())
