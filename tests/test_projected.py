"""One layer as an operator, in one direction and in both: derivatives, compile, vmap, autocast."""

import pytest
import torch
from hypothesis import given, settings
from scan_cases import cases, inputs
from tolerance import assert_close_to_reference

import fastindrnn
from fastindrnn.functional import indrnn
from fastindrnn.kernels import reference


@pytest.mark.parametrize("time_first", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_layer_gradients(time_first, has_bias):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x.transpose(0, 1) if time_first and x.dim() == 3 else x).requires_grad_()

    x = normal(4, 3, 2) if time_first else normal(3, 4, 2)
    arguments = [x, normal(5, 2), normal(5) if has_bias else None, normal(5), normal(3, 5)]
    wanted = [x for x in arguments if x is not None]

    def call(*wanted):
        values = iter(wanted)
        return indrnn(*[None if x is None else next(values) for x in arguments])

    assert torch.autograd.gradcheck(call, wanted)
    assert torch.autograd.gradgradcheck(call, wanted)
    h = call(*wanted)[0]
    assert h.stride(-1) == 1
    assert (h.stride(0) < h.stride(1)) == time_first


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("form", ["padded", "time first", "lengths", "packed"])
@pytest.mark.parametrize("mode", ["per_step", "result"])
def test_layer_clip_modes(mode, form, direction):
    """First and second derivatives. The bias, as the weight, gets the sum of clipped gradients, not
    a clipped sum."""
    generator = torch.Generator().manual_seed(0)
    shape = {"time first": (40, 3, 2), "packed": (80, 2)}.get(form, (3, 40, 2))
    arguments = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in (shape, (6, 2), (6,), (6,), (3, 6))
    ]
    with torch.no_grad():
        arguments[3].tanh_()  # or the states grow beyond all bounds
    x, *rest = arguments
    x = x.transpose(0, 1) if form == "time first" else x
    options = {"grad_clip": 0.3, "grad_clip_mode": mode, "direction": direction}
    if form == "lengths":
        options["lengths"] = torch.tensor([40, 3, 0])
    elif form == "packed":
        options["cu_seqlens"] = torch.tensor([0, 40, 41, 80])
    results = []
    for backend in (None, "reference"):
        with fastindrnn.backend(backend):
            h, h_n = indrnn(x, *rest, **options)
            loss = h.square().sum() + h_n.cos().sum()
            first = torch.autograd.grad(loss, arguments, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), arguments)
            results.append((h, h_n, *first, *second))
    torch.testing.assert_close(*results)
    ours = results[0]
    assert ours[4].abs().max() > 0.3
    if mode == "result":
        assert ours[5].abs().max() == ours[5 + 5].abs().max() == 0.3, "of u"
    if form in ("padded", "time first"):
        assert (ours[0].stride(0) < ours[0].stride(1)) == (form == "time first")


@pytest.mark.filterwarnings("ignore:.*isinstance:FutureWarning")
def test_clipped_results_in_pytorch():
    """torch.compile in one piece, export, vmap over models; inference takes the operator."""

    def call(x, weight, u):
        return indrnn(x, weight, None, u, grad_clip=0.3, grad_clip_mode="result")[0]

    def gradients(call):
        return torch.autograd.grad(call(x, weight, u).square().sum(), (weight, u))

    class Layer(torch.nn.Module):
        def forward(self, x, weight, u):
            return call(x, weight, u)

    x, weight = torch.randn(3, 9, 5), torch.randn(6, 5, requires_grad=True)
    u = torch.rand(6, requires_grad=True)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled), gradients(call))
    program = torch.export.export(Layer(), (x, weight, u), strict=False)
    torch.testing.assert_close(program.module()(x, weight, u), call(x, weight, u))
    torch.testing.assert_close(gradients(program.module()), gradients(call))
    weights, us = torch.stack([weight, 2 * weight]), torch.stack([u, u / 2])
    mapped = torch.vmap(call, (None, 0, 0))(x, weights, us)
    grads = torch.autograd.grad(mapped.square().sum(), (weights, us))
    for i in range(2):
        alone = weights[i].detach().requires_grad_(), us[i].detach().requires_grad_()
        h = call(x, *alone)
        torch.testing.assert_close(mapped[i], h)
        expected = torch.autograd.grad(h.square().sum(), alone)
        torch.testing.assert_close(tuple(grad[i] for grad in grads), expected)
    with torch.no_grad():
        seen = str(torch.fx.experimental.proxy_tensor.make_fx(call)(x, weight, u).code)
    assert "fastindrnn.indrnn" in seen


@settings(max_examples=50, deadline=None)
@given(cases(T=5, N=4, dtype=torch.float64))
def test_bidirectional_is_two_layers(case):
    """The first half of the channels forwards, the others in reverse: outputs, first and second
    derivatives; without a clip also by finite differences."""
    (x, *_, options), _ = inputs(case)
    options = {k: v for k, v in options.items() if k != "reverse"}
    generator = torch.Generator().manual_seed(case.seed)
    x = torch.where(x.isnan(), 0, x).requires_grad_()
    shapes = ((6, case.N), (6,), (6,), (case.B, 6))
    rest = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    wanted = [x, *(tensor.requires_grad_() for tensor in rest)]
    clip = {"grad_clip": case.grad_clip}

    def both(x, *rest):
        return indrnn(x, *rest, **options, **clip, direction="both")

    def one_by_one(x, weight, bias, u, h0):
        found = []
        for i in range(2):
            direction = options | {"direction": ("forward", "reverse")[i]}
            part = weight.chunk(2)[i], bias.chunk(2)[i], u.chunk(2)[i], h0.chunk(2, -1)[i]
            found.append(indrnn(x, *part, **direction, **clip))
        return tuple(torch.cat(pair, -1) for pair in zip(*found, strict=True))

    results = []
    for function in (both, one_by_one):
        h, h_n = function(*wanted)
        loss = h.sin().sum() + h_n.cos().sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
        norm = sum(grad.square().sum() for grad in first) + 0 * loss
        second = torch.autograd.grad(norm, wanted, materialize_grads=True)
        results.append((h, h_n, *first, *second))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    if case.grad_clip is None and x.numel():
        assert torch.autograd.gradcheck(both, wanted)
        assert torch.autograd.gradgradcheck(both, wanted)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize(("K", "N"), [(0, 4), (5, 0), (0, 0)])
@pytest.mark.parametrize("form", ["padded", "time first", "packed", "both directions"])
def test_no_features_or_no_neurons(form, K, N, backend):
    """Outputs and gradients of such sizes as those of the reference, as nn.Linear gives them. In
    float64, because the gradient of u is a sum of many terms."""
    x, options = torch.randn(3, 4, K).double(), {}
    if form == "time first":
        x = torch.randn(4, 3, K).double().transpose(0, 1)
    elif form == "packed":
        x, options["cu_seqlens"] = torch.randn(12, K).double(), torch.tensor([0, 4, 4, 12])
    elif form == "both directions":
        options["direction"] = "both"
    shapes = (N, K), (N,), (N,), (3, N)
    rest = [torch.rand(s, dtype=torch.float64).requires_grad_() for s in shapes]
    arguments, results = [x.requires_grad_(), *rest], []
    for name in (backend, "reference"):
        with fastindrnn.backend(name):
            h, h_n = indrnn(*arguments, **options)
            loss = h.sin().sum() + h_n.cos().sum()
            grads = torch.autograd.grad(loss, arguments, materialize_grads=True)
            results.append((h, h_n, *grads))
    torch.testing.assert_close(*results)


def test_bidirectional_in_the_reference():
    arguments = torch.randn(3, 7, 2), torch.randn(6, 2), torch.randn(6), torch.rand(6)
    options = {"direction": "both", "lengths": torch.tensor([7, 0, 3])}
    expected = indrnn(*arguments, torch.randn(3, 6).zero_(), **options)
    with fastindrnn.backend("reference"):
        torch.testing.assert_close(indrnn(*arguments, **options), expected)


@pytest.mark.triton
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_strategies_agree(direction):
    arguments = torch.randn(3, 40, 5), torch.randn(8, 5), torch.randn(8), torch.rand(8)
    options = {"direction": direction}
    expected = indrnn(*arguments, **options)
    torch.testing.assert_close(indrnn(*arguments, **options, strategy="split"), expected)
    with pytest.raises(ValueError, match="fused"):
        indrnn(*arguments, **options, strategy="fused")
    with fastindrnn.backend("triton"):
        for strategy in ("fused", "split"):
            torch.testing.assert_close(indrnn(*arguments, **options, strategy=strategy), expected)
    double = [x.double() for x in arguments]
    with fastindrnn.backend("triton"), pytest.raises(ValueError, match="float64"):
        indrnn(*double, **options, strategy="fused")


@pytest.mark.parametrize("backend", [None, "reference"])
def test_nan_in_the_padding_reaches_nothing(backend):
    x, w = torch.randn(3, 7, 2), torch.randn(5, 2, requires_grad=True)
    b, u = torch.randn(5, requires_grad=True), torch.rand(5, requires_grad=True)
    lengths = torch.tensor([7, 3, 0])
    x[torch.arange(7) >= lengths[:, None]] = torch.nan
    x.requires_grad_()
    with fastindrnn.backend(backend):
        h, h_n = indrnn(x, w, b, u, lengths=lengths)
        grads = torch.autograd.grad(h.sum() + h_n.sum(), (x, w, b, u))
    assert all(value.isfinite().all() for value in (h, h_n, *grads))


@pytest.mark.parametrize("direction", ["reverse", "both"])
def test_compile_and_export_of_a_layer(direction):
    class Layer(torch.nn.Module):
        def forward(self, x, weight, u):
            return indrnn(x, weight, None, u, direction=direction)

    def results(module, x):
        h, h_n = module(x, weight, u)
        return h, h_n, *torch.autograd.grad(h.sin().sum() + h_n.sum(), (weight, u))

    weight, u = torch.randn(6, 5, requires_grad=True), torch.rand(6, requires_grad=True)
    x = torch.randn(3, 9, 5)
    compiled = torch.compile(Layer(), fullgraph=True)
    torch.testing.assert_close(results(compiled, x), results(Layer(), x), rtol=1e-4, atol=1e-4)
    dims = {"x": {1: torch.export.Dim("T", min=2)}, "weight": None, "u": None}
    program = torch.export.export(Layer(), (x, weight, u), dynamic_shapes=dims, strict=False)
    x = torch.randn(3, 20, 5)
    torch.testing.assert_close(program.module()(x, weight, u), Layer()(x, weight, u))


@pytest.mark.parametrize("direction", ["reverse", "both"])
def test_vmap_over_layers(direction):
    """In any place of the mapped dimension, forward and, many gradients at once, backward."""
    x, weight = torch.randn(4, 7, 2, dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    bias, u = torch.randn(3, 6, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    h0, dims = torch.randn(4, 6, dtype=torch.float64), (None, 2, 0, 1, None)
    arguments = [y.requires_grad_() for y in (x, weight, bias, u, h0)]

    def call(*arguments):
        return indrnn(*arguments, direction=direction)

    def alone(i):
        pairs = zip(arguments, dims, strict=True)
        return call(*(y if dim is None else y.select(dim, i) for y, dim in pairs))

    actual = torch.vmap(call, dims)(*arguments)
    parts = [alone(i) for i in range(3)]
    expected = tuple(torch.stack(part) for part in zip(*parts, strict=True))
    torch.testing.assert_close(actual, expected)
    seeds = [torch.randn(2, *y.shape, dtype=torch.float64) for y in actual]
    grads = [
        torch.autograd.grad(h, arguments, seeds, is_grads_batched=True, retain_graph=True)
        for h in (actual, expected)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_meta_tensors(direction):
    x, weight = torch.empty(3, 7, 2, device="meta"), torch.empty(6, 2, device="meta")
    with torch.no_grad():
        h, h_n = indrnn(x, weight, None, weight[:, 0], direction=direction)
    assert h.is_meta
    assert (h.shape, h_n.shape) == ((3, 7, 6), (3, 6))


def test_autocast_keeps_u_and_state_in_float32():
    """A product in bfloat16; |u| = 0.999, which bfloat16 rounds to 1, still fades."""
    x, weight = torch.randn(2, 8, 4), torch.randn(6, 4, requires_grad=True)
    bias = torch.zeros(6, requires_grad=True)
    u = torch.full((6,), 0.999, requires_grad=True)
    h0 = torch.ones(2, 6)
    with torch.autocast("cpu"):
        h, h_n = indrnn(x, weight, bias, u, h0)
        still = indrnn(torch.zeros(2, 1000, 4), weight, bias, u, h0)[1]
    assert h.dtype == h_n.dtype == torch.bfloat16
    a = torch.nn.functional.linear(x.bfloat16(), weight.bfloat16())
    expected = reference.scan(a.double(), u.double(), h0.double())[0]
    assert_close_to_reference(h, expected, reference.scan(a, u, h0)[0])
    torch.testing.assert_close(still.float(), torch.full((2, 6), 0.999**1000), rtol=0.01, atol=0)
    h.float().sum().backward()
    assert {x.grad.dtype for x in (weight, bias, u)} == {torch.float32}
