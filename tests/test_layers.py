"""IndRNN and IndRNNCell against loops, and against what `nn.RNN` leads one to expect."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

import fastindrnn
from fastindrnn import IndRNN, IndRNNCell


def naive(rnn, x, hx=None):
    """The definition over a batch-first input, layer by layer, step by step."""
    ends, D = [], 2 if rnn.bidirectional else 1
    for layer in range(rnn.num_layers):
        outputs = []
        for direction in range(D):
            suffix = f"_l{layer}" + ("_reverse" if direction else "")
            w, u = getattr(rnn, f"weight_ih{suffix}"), getattr(rnn, f"weight_hh{suffix}")
            b = getattr(rnn, f"bias_ih{suffix}") if rnn.bias else 0
            h = x.new_zeros(x.shape[0], rnn.hidden_size) if hx is None else hx[len(ends)]
            rows = [None] * x.shape[1]
            for t in reversed(range(x.shape[1])) if direction else range(x.shape[1]):
                h = rows[t] = torch.relu(x[:, t] @ w.T + b + u * h)
            outputs.append(torch.stack(rows, 1))
            ends.append(h)
        x = torch.cat(outputs, -1)
    return x, torch.stack(ends)


@pytest.mark.parametrize("has_hx", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("num_layers", "bias"), [(1, True), (3, False)])
def test_against_a_loop(num_layers, bias, bidirectional, batch_first, has_hx):
    options = {"batch_first": batch_first, "bidirectional": bidirectional, "bias": bias}
    rnn = IndRNN(5, 7, num_layers, **options, dtype=torch.float64)
    D = 2 if bidirectional else 1
    x = torch.randn(3, 11, 5, dtype=torch.float64)
    hx = torch.randn(D * num_layers, 3, 7, dtype=torch.float64) if has_hx else None
    output, h_n = rnn(x if batch_first else x.transpose(0, 1), hx)
    output = output if batch_first else output.transpose(0, 1)
    expected = naive(rnn, x, hx)
    torch.testing.assert_close((output, h_n), expected)
    weights = torch.randn_like(output)
    grads = torch.autograd.grad((output * weights).sum() + h_n.sum(), list(rnn.parameters()))
    loss = (expected[0] * weights).sum() + expected[1].sum()
    torch.testing.assert_close(grads, torch.autograd.grad(loss, list(rnn.parameters())))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_shapes_and_dtypes_are_those_of_rnn(batch_first, bidirectional):
    options = {"num_layers": 2, "batch_first": batch_first, "bidirectional": bidirectional}
    ours, theirs = IndRNN(5, 7, **options), nn.RNN(5, 7, nonlinearity="relu", **options)
    for shape in ((4, 3, 5), (4, 5)):
        x = torch.randn(shape)
        for a, b in zip(ours(x), theirs(x), strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
    names = {name for name, _ in theirs.named_parameters() if "bias_hh" not in name}
    assert {name for name, _ in ours.named_parameters()} == names


def test_equals_rnn_with_a_diagonal_recurrence():
    ours, theirs = IndRNN(5, 7, 2), nn.RNN(5, 7, 2, nonlinearity="relu")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.startswith("weight_hh"):
                parameter.copy_(torch.diag(getattr(ours, name)))
            elif name.startswith("bias_hh"):
                parameter.zero_()
            else:
                parameter.copy_(getattr(ours, name))
    x, hx = torch.randn(11, 3, 5), torch.randn(2, 3, 7)
    torch.testing.assert_close(ours(x, hx), theirs(x, hx))


def test_unbatched_is_a_batch_of_one():
    rnn = IndRNN(5, 7, 2, bidirectional=True)
    x, hx = torch.randn(11, 5), torch.randn(4, 7)
    output, h_n = rnn(x, hx)
    batched, batched_h_n = rnn(x[:, None], hx[:, None])
    torch.testing.assert_close((output, h_n), (batched[:, 0], batched_h_n[:, 0]))


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_and_resets(batch_first):
    rnn = IndRNN(5, 7, 2, bidirectional=True, batch_first=batch_first)
    x = torch.randn(3, 11, 5)
    lengths = torch.tensor([11, 4, 0])
    resets = torch.rand(3, 11) < 0.2
    padded = torch.where((torch.arange(11) < lengths[:, None])[..., None], x, torch.nan)

    def run(x, **options):
        if batch_first:
            return rnn(x, **options)
        options = {k: v.T if k == "resets" else v for k, v in options.items()}
        output, h_n = rnn(x.transpose(0, 1), **options)
        return output.transpose(0, 1), h_n

    output, h_n = run(padded, lengths=lengths, resets=resets)
    for b, length in enumerate(lengths.tolist()):
        alone, alone_h_n = run(x[b : b + 1, :length], resets=resets[b : b + 1, :length])
        torch.testing.assert_close(output[b, :length], alone[0])
        assert not output[b, length:].any()
        torch.testing.assert_close(h_n[:, b], alone_h_n[:, 0])
    output.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in rnn.parameters())


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", [{}, {"norm": "layer"}])
def test_a_reset_starts_a_new_sequence(options, bidirectional):
    """In both directions: each part is as if it were alone, in its gradients too."""
    rnn = IndRNN(5, 7, 2, bidirectional=bidirectional, **options).double()
    x, starts = torch.randn(11, 5, dtype=torch.float64), [0, 3, 4, 9, 11]
    resets = torch.zeros(11, dtype=torch.bool)
    resets[starts[1:-1]] = True
    pieces = [rnn(x[a:b])[0] for a, b in itertools.pairwise(starts)]
    results = []
    for output in (rnn(x, resets=resets)[0], torch.cat(pieces)):
        grads = torch.autograd.grad(output.sin().sum(), list(rnn.parameters()))
        results.append((output, *grads))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (0, 0, 5)])
def test_empty_inputs(shape):
    rnn = IndRNN(5, 7, 2, bidirectional=True)
    output, h_n = rnn(torch.randn(shape))
    assert output.shape == (*shape[:2], 14)
    assert torch.equal(h_n, torch.zeros(4, shape[1], 7))


@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_is_one_mask_over_time_between_layers(batch_first):
    rnn = IndRNN(3, 400, 2, dropout=0.25, batch_first=batch_first)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            parameter.fill_(0 if "weight_hh" in name else 1)
        rnn.weight_ih_l1.copy_(torch.eye(400))
        rnn.bias_ih_l1.zero_()
    x = torch.ones(4, 6, 3)
    output = rnn(x)[0] if batch_first else rnn(x.transpose(0, 1))[0].transpose(0, 1)
    assert torch.equal(output, output[:, :1].expand_as(output)), "the mask changes over time"
    assert not torch.equal(output[0], output[1]), "all sequences have one mask"
    values = output.unique().tolist()
    assert values == [0.0, pytest.approx(4 / 0.75)]
    assert abs((output[:, 0] == 0).float().mean() - 0.25) < 0.06
    rnn.eval()
    assert (rnn(x)[0] == 4).all()
    with pytest.warns(UserWarning, match="num_layers=1"):
        IndRNN(3, 4, dropout=0.5)


def test_cell_equals_the_layer():
    layer = IndRNN(5, 7, grad_clip=1.0)
    cell = IndRNNCell(5, 7, grad_clip=1.0)
    cell.load_state_dict(layer.state_dict())
    x, h = torch.randn(11, 3, 5), torch.randn(3, 7)
    output, _ = layer(x, h[None])
    states = [h := cell(step, h) for step in x]
    torch.testing.assert_close(torch.stack(states), output)
    loss = output.square().sum()
    ours = torch.autograd.grad(sum(h.square().sum() for h in states), list(cell.parameters()))
    torch.testing.assert_close(ours, torch.autograd.grad(loss, list(layer.parameters())))
    torch.testing.assert_close(cell(x[0, 0]), cell(x[0])[0])
    torch.testing.assert_close(cell(x[0, 0], h[0]), cell(x[0], h)[0])


@pytest.mark.parametrize("mode", ["per_step", "result"])
def test_cell_clips_as_the_layer(mode):
    """Gradients of the input, the state and all parameters, where the clip acts."""
    clip = {"grad_clip": 0.01, "grad_clip_mode": mode}  # so small that it acts for any seed
    layer, cell = IndRNN(5, 7, **clip).double(), IndRNNCell(5, 7, **clip).double()
    cell.load_state_dict(layer.state_dict())
    x, h = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (5, 7))
    weights, results = torch.randn(3, 7, dtype=torch.float64) * 2, []
    for module, output in ((cell, cell(x, h)), (layer, layer(x[None], h[None])[0][0])):
        wanted = [x, h, *module.parameters()]
        results.append((output, *torch.autograd.grad((output * weights).sum(), wanted)))
    torch.testing.assert_close(*results)
    free = IndRNNCell(5, 7).double()
    free.load_state_dict(cell.state_dict())
    for part in (x, h):
        (grad,) = torch.autograd.grad((free(x, h) * weights).sum(), part)
        assert not torch.allclose(grad, results[0][1 if part is x else 2]), "the clip does not act"


def test_initial_values():
    rnn = IndRNN(50, 200, 2, recurrent_max=0.7)
    for layer, size in ((0, 50), (1, 200)):
        u, w = getattr(rnn, f"weight_hh_l{layer}"), getattr(rnn, f"weight_ih_l{layer}")
        assert 0 <= u.min() < 0.1
        assert 0.6 < u.max() <= 0.7
        assert 0.9 < w.abs().max() * size**0.5 <= 1
        assert not getattr(rnn, f"bias_ih_l{layer}").any()
    last = [None, lambda u: fastindrnn.init.long_memory_(u, 100, 2.0)]
    u = IndRNN(5, 400, 2, recurrent_init=last).weight_hh_l1
    assert 2**-0.01 <= u.min() < u.max() <= 2**0.01
    assert (IndRNN(5, 7, recurrent_init=fastindrnn.init.identity_).weight_hh_l0 == 1).all()
    assert (fastindrnn.init.identity_(torch.empty(3), 0.01) == 0.01).all()
    assert abs(fastindrnn.init.normal_(torch.empty(4000), 1.0, 0.1).std() - 0.1) < 0.01
    with pytest.raises(ValueError, match="T and gamma"):
        fastindrnn.init.long_memory_(u, 0)


def test_constraint():
    bound = fastindrnn.recurrent_max_for(100, 2.0)
    assert bound == pytest.approx(2**0.01)
    model = nn.Sequential(IndRNN(5, 7, 2, bidirectional=True, recurrent_max=bound), nn.Linear(7, 1))
    free = IndRNN(5, 7)
    model.append(free)
    us = [p for name, p in model.named_parameters() if "weight_hh" in name]
    with torch.no_grad():
        for u in us:
            u.copy_(torch.linspace(-2, 2, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = fastindrnn.constrain_after_step(optimizer, model)
    optimizer.step()
    assert all(u.abs().max().item() == pytest.approx(bound) for u in us[:-1])
    assert us[-1].abs().max() == 2
    handle.remove()
    with torch.no_grad():
        us[0].fill_(3)
    optimizer.step()
    assert us[0].max() == 3
    fastindrnn.constrain_(model)
    assert us[0].max().item() == pytest.approx(bound)


def test_constraint_of_every_value():
    """To the nearest bound: a negative u stays negative, one within the bounds stays as it is."""
    values = torch.tensor([-3.0, -0.75, -0.5, -0.1, -0.0, 0.2, 0.5, 0.6, 3.0])
    for module in (IndRNN(5, 9, 2, recurrent_max=0.5), IndRNNCell(5, 9, recurrent_max=0.5)):
        us = [p for name, p in module.named_parameters() if "weight_hh" in name]
        with torch.no_grad():
            for u in us:
                u.copy_(values)
        fastindrnn.constrain_(module)
        expected = torch.tensor([-0.5, -0.5, -0.5, -0.1, -0.0, 0.2, 0.5, 0.5, 0.5])
        assert all(torch.equal(u, expected) for u in us)


def test_copies():
    rnn = IndRNN(5, 7, 2, bidirectional=True, recurrent_init=fastindrnn.init.identity_)
    x = torch.randn(4, 3, 5)
    for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
        torch.testing.assert_close(other(x), rnn(x))
    fresh = IndRNN(5, 7, 2, bidirectional=True)
    fresh.load_state_dict(rnn.state_dict())
    torch.testing.assert_close(fresh(x), rnn(x))
    assert fresh.flatten_parameters() is None
    assert repr(rnn) == "IndRNN(5, 7, num_layers=2, bidirectional=True, recurrent_init=identity_)"


def test_training_reduces_the_loss():
    torch.manual_seed(0)
    rnn, head = IndRNN(3, 32, 2, grad_clip=10.0), nn.Linear(32, 1)
    parameters = itertools.chain(rnn.parameters(), head.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    x = torch.randn(20, 16, 3)
    target = x[..., 0].cumsum(0)
    losses = []
    for _ in range(60):
        loss = (head(rnn(x)[0])[..., 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0], losses
