"""Inputs that few people have: overlapping time steps, negative views, strided biases, forward-mode
derivatives, complex numbers."""

import pytest
import torch
from torch.autograd import forward_ad

from fastindrnn import IndRNN
from fastindrnn.functional import indrnn, indrnn_scan
from fastindrnn.kernels import reference


def test_overlapping_time_steps():
    """Frames of a signal, each one sample later than the one before: all strides but one are 1."""
    a, u = torch.randn(2, 40).unfold(1, 32, 1), torch.rand(32)
    torch.testing.assert_close(indrnn_scan(a, u)[0], reference.scan(a, u)[0])
    weight = torch.randn(5, 32)
    expected = reference.scan(a @ weight.t(), u[:5])[0]
    torch.testing.assert_close(indrnn(a, weight, None, u[:5])[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_negative_views(requires_grad):
    """`.imag` of a conjugate: a view of the imaginary parts that PyTorch negates when it reads."""
    a, u = torch.randn(2, 9, 4), torch.rand(4)
    view = torch.complex(torch.rand(4), -u).conj().imag
    assert view.is_neg()
    with torch.set_grad_enabled(requires_grad):
        h, _ = indrnn_scan(a, view)
    torch.testing.assert_close(h, reference.scan(a, u)[0])


@pytest.mark.parametrize("requires_grad", [False, True])
def test_strided_bias(requires_grad):
    x, weight, u, wide = torch.randn(2, 9, 3), torch.randn(4, 3), torch.rand(4), torch.randn(8)
    for bias in (wide[::2], wide[:1].expand(4)):
        with torch.set_grad_enabled(requires_grad):
            h, _ = indrnn(x, weight, bias, u)
        expected, _ = reference.scan(torch.nn.functional.linear(x, weight, bias), u)
        torch.testing.assert_close(h, expected)


def test_forward_mode_is_refused():
    """PyTorch would treat the operator as a constant, whose derivative is 0."""
    a, u = torch.randn(2, 9, 4), torch.rand(4)
    rnn = IndRNN(4, 5, num_layers=2)
    for function in (lambda a: indrnn_scan(a, u)[0], lambda a: rnn(a)[0]):
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jvp(function, (a,), (a,))
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            function(forward_ad.make_dual(a, a))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_input_must_be_real():
    rnn = IndRNN(3, 4).to(torch.complex64)
    with pytest.raises(TypeError, match="input must be float32"):
        rnn(torch.randn(5, 2, 3, dtype=torch.complex64))


def test_no_output_shares_memory_with_another():
    """A user may write to one result, and the others must not change."""
    x = torch.randn(2, 9, 3, requires_grad=True)
    rnn = IndRNN(3, 4, num_layers=2, batch_first=True)
    rnn(x)[0].sum().backward()
    addresses = [p.grad.untyped_storage().data_ptr() for p in rnn.parameters()]
    assert len(set(addresses)) == len(addresses)
