"""Zoneout against its definition, with the same draws."""

import pytest
import torch

from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN
from fastindrnn.options import Recurrence
from fastindrnn.sequences import Sequences
from fastindrnn.zoneout import zoneout_scan


def definition(a, u, h0, kept, mix, valid, reverse):
    """A loop over time; `kept` (B, T, N) are the draws, or None for the expected mix."""
    state, rows = h0, [None] * a.shape[1]
    for t in reversed(range(a.shape[1])) if reverse else range(a.shape[1]):
        new = torch.relu(a[:, t] + u * state)
        new = mix * state + (1 - mix) * new if kept is None else torch.where(kept[:, t], state, new)
        state = torch.where(valid[:, t, None], new, state)
        rows[t] = torch.where(valid[:, t, None], state, 0)
    return torch.stack(rows, 1), state


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_definition(padded, reverse, training):
    generator = torch.Generator().manual_seed(0)
    B, T, N, p = 4, 12, 5, 0.4
    normal = {"generator": generator, "dtype": torch.float64}
    a = torch.randn(B, T, N, **normal).requires_grad_()
    u = (torch.rand(N, **normal) * 2 - 1).requires_grad_()
    h0 = torch.randn(B, N, **normal).requires_grad_()
    lengths = torch.tensor([12, 5, 0, 1]) if padded else None
    sequences = Sequences(B, lengths=lengths)
    valid = sequences.valid(a) if padded else torch.ones(B, T, dtype=torch.bool)
    recurrence = Recurrence(direction="reverse" if reverse else "forward")
    torch.manual_seed(1)
    actual = zoneout_scan(
        a, u, h0, probability=p, training=training, sequences=sequences, recurrence=recurrence
    )
    kept = None
    if training:
        torch.manual_seed(1)
        kept = torch.rand(a.shape) < p
        kept = kept.flip(1) if reverse else kept
    expected = definition(a, u, h0, kept, p, valid, reverse)
    torch.testing.assert_close(actual, expected)
    grads = [
        torch.autograd.grad(h.sin().sum() + h_n.cos().sum(), (a, u, h0))
        for h, h_n in (actual, expected)
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: IndRNN(5, 6, 2, bidirectional=True, **o),
        lambda **o: ResidualIndRNN(5, 6, 1, norm="layer", **o),
        lambda **o: DenseIndRNN(5, 2, (1,), **o),
        lambda **o: Bidirectional(lambda: IndRNN(5, 6, **o)),
    ],
)
def test_in_every_stack(make):
    x, lengths = torch.randn(9, 3, 5), torch.tensor([9, 4, 0])
    module, plain = make(zoneout=0.5), make()
    plain.load_state_dict(module.state_dict())
    output = module(x, lengths=lengths)[0]
    assert not torch.allclose(output, plain(x, lengths=lengths)[0])
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())
    never = make(zoneout=1e-12)
    never.load_state_dict(module.state_dict())
    torch.testing.assert_close(never(x, lengths=lengths), plain(x, lengths=lengths))
    module.eval()
    torch.testing.assert_close(module(x, lengths=lengths), module(x, lengths=lengths))


def test_states_that_grow():
    """Behind the steps that are not kept runs the rest of the tensor: where |u| > 1 its states
    would overflow, and 0 * inf in the backward is not 0."""
    B, T, N = 2, 600, 3
    a = torch.randn(B, T, N).abs().requires_grad_()
    u, h0 = torch.full((N,), 1.5, requires_grad=True), torch.ones(B, N, requires_grad=True)
    torch.manual_seed(1)
    actual = zoneout_scan(
        a, u, h0, probability=0.95, training=True, sequences=Sequences(B), recurrence=Recurrence()
    )
    torch.manual_seed(1)
    kept = torch.rand(a.shape) < 0.95
    valid = torch.ones(B, T, dtype=torch.bool)
    expected = definition(a, u, h0, kept, 0.95, valid, False)
    torch.testing.assert_close(actual, expected)
    assert actual[0].isfinite().all()
    grads = [torch.autograd.grad(h_n.log().sum(), (a, u, h0)) for _, h_n in (actual, expected)]
    torch.testing.assert_close(*grads)


def test_steps_equal_the_full_pass():
    module = ResidualIndRNN(5, 6, 1, zoneout=0.3).eval()
    x, state, rows = torch.randn(9, 3, 5), None, []
    output, h_n = module(x)
    for row in x:
        y, state = module.step(row, state)
        rows.append(y)
    torch.testing.assert_close((torch.stack(rows), state), (output, h_n))


def test_all_steps_kept_is_the_initial_state():
    module, h0 = IndRNN(5, 6, zoneout=1.0), torch.randn(1, 3, 6)
    output, h_n = module(torch.randn(9, 3, 5), h0)
    assert torch.equal(output, h0.expand(9, 3, 6))
    assert torch.equal(h_n, h0)


def test_what_does_not_go_together():
    x = torch.randn(9, 3, 5)
    module = IndRNN(5, 6, zoneout=0.5)
    with pytest.raises(ValueError, match="without resets"):
        module(x, resets=torch.zeros(9, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="padded sequences"):
        module(torch.nn.utils.rnn.pack_sequence([x[:, 0]]))
    with pytest.raises(ValueError, match=r"zoneout must be a probability.*2"):
        IndRNN(5, 6, zoneout=2)
