"""The reference itself: hand-computed values, and the gradient's formula against its autograd."""

import torch
from hypothesis import given, settings
from scan_cases import cases, gradients_by_formula, inputs

from fastindrnn.kernels import reference


def test_values_by_hand():
    a = torch.tensor([[[1.0], [-3.0], [2.0]]])
    u = torch.tensor([0.5])
    h0 = torch.tensor([[4.0]])
    h, h_n = reference.scan(a, u, h0)
    assert h.flatten().tolist() == [3.0, 0.0, 2.0]
    assert h_n.item() == 2.0
    h, h_n = reference.scan(a, u, h0, nonlinearity="identity", reverse=True)
    assert h.flatten().tolist() == [0.5, -1.0, 4.0]
    assert h_n.item() == 0.5


def test_options_by_hand():
    a = torch.ones(2, 3, 1)
    u = torch.ones(1)
    h, h_n = reference.scan(a, u, lengths=torch.tensor([2, 0]))
    assert h.flatten().tolist() == [1, 2, 0, 0, 0, 0]
    assert h_n.flatten().tolist() == [2, 0]
    h, h_n = reference.scan(a.reshape(6, 1), u, cu_seqlens=torch.tensor([0, 4, 6]), reverse=True)
    assert h.flatten().tolist() == [4, 3, 2, 1, 2, 1]
    assert h_n.flatten().tolist() == [4, 2]
    resets = torch.tensor([[False, True, False], [True, False, False]])
    h, _ = reference.scan(a, u, torch.full((2, 1), 5.0), resets=resets)
    assert h.flatten().tolist() == [6, 1, 2, 1, 2, 3]


def test_clip_of_each_step_and_of_the_result():
    a = torch.ones(1, 3, 1, requires_grad=True)
    u = torch.ones(1, requires_grad=True)
    for mode, expected in (("per_step", [1.0, 1.0, 1.0]), ("result", [1.5, 1.5, 1.0])):
        bound = 1.0 if mode == "per_step" else 1.5
        h, _ = reference.scan(a, u, grad_clip=bound, grad_clip_mode=mode)
        assert torch.autograd.grad(h.sum(), a)[0].flatten().tolist() == expected


@settings(max_examples=60, deadline=None)
@given(cases(T=9, N=4, dtype=torch.float64))
def test_formula_of_the_gradient(case):
    (a, u, h0, options), (grad_h, grad_h_n) = inputs(case)
    a, grad_h = (torch.where(x.isnan(), 0, x).requires_grad_() for x in (a, grad_h))
    start = torch.zeros(case.B, case.N, dtype=a.dtype) if h0 is None else h0
    wanted = (a, u.requires_grad_(), start.requires_grad_())
    h, h_n = reference.scan(*wanted, **options, grad_clip=case.grad_clip)
    loss = (h * grad_h.detach()).sum()
    if grad_h_n is not None:
        loss = loss + (h_n * grad_h_n).sum()
    by_autograd = torch.autograd.grad(loss, wanted, materialize_grads=True)
    detached = [None if x is None else x.detach() for x in (grad_h, grad_h_n, h, u, h0)]
    by_formula = gradients_by_formula(*detached, **options, grad_clip=case.grad_clip)
    torch.testing.assert_close(by_formula[:3], by_autograd, rtol=1e-12, atol=1e-12)
