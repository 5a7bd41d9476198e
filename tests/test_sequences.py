"""Every form in which sequences come, through every kind of stack, in every backend."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import fastindrnn
from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN
from fastindrnn.norm import StepBatchNorm, normalize
from fastindrnn.sequences import Sequences

LENGTHS = [3, 9, 1, 5]
STACKS = {
    "layers": lambda **options: IndRNN(5, 6, 2, **options),
    "bidirectional": lambda **options: IndRNN(5, 6, 2, bidirectional=True, **options),
    "residual": lambda **options: ResidualIndRNN(5, 6, 2, **options),
    "dense": lambda **options: DenseIndRNN(5, 2, (2, 1), **options),
    "both ways": lambda **options: Bidirectional(lambda: ResidualIndRNN(5, 6, 1, **options)),
    "dense both ways": lambda **options: Bidirectional(lambda: DenseIndRNN(5, 2, (1,), **options)),
}
NORMS = {
    "none": {"norm": None},
    "batch": {"norm": "batch"},
    "batch before": {"norm": "batch", "norm_position": "before"},
    "per step": {"norm": "batch_per_step", "norm_steps": 9},
    "layer": {"norm": "layer"},
}


def make(stack, norm, **options):
    torch.manual_seed(0)
    module = STACKS[stack](**NORMS[norm], **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "weight_hh" in name:
                parameter.uniform_(-1, 1)
            elif "norm" in name:
                parameter.add_(torch.rand_like(parameter) * 0.2)
            elif "bias" in name:
                parameter.normal_()
    return module.double()


def batch(features=5):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, features, generator=generator, dtype=torch.float64) for n in LENGTHS]


def padded(pieces):
    return nn.utils.rnn.pad_sequence(pieces, padding_value=torch.nan)


def gradients(module, output, h_n):
    loss = output.sin().sum() + h_n.cos().sum()
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, parameters, materialize_grads=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stack", STACKS)
def test_forms_agree(stack, norm, training):
    """Padding full of NaN, sorted or unsorted PackedSequence: the same outputs, last states and
    gradients; in evaluation also the same as each sequence alone."""
    module = make(stack, norm).train(training)
    pieces, lengths = batch(), torch.tensor(LENGTHS)
    output, h_n = module(padded(pieces), lengths=lengths)
    expected = gradients(module, output, h_n)
    assert all(torch.isfinite(grad).all() for grad in expected)
    assert not output[torch.arange(9)[:, None] >= lengths].any()

    packed = pack_padded_sequence(padded(pieces), lengths, enforce_sorted=False)
    packed_output, packed_h_n = module(packed)
    assert isinstance(packed_output, PackedSequence)
    unpacked, unpacked_lengths = pad_packed_sequence(packed_output)
    assert torch.equal(unpacked_lengths, lengths)
    torch.testing.assert_close((unpacked, packed_h_n), (output, h_n))
    torch.testing.assert_close(gradients(module, unpacked, packed_h_n), expected)

    order = lengths.argsort(descending=True)
    in_order, in_order_h_n = module(pack_sequence([pieces[i] for i in order]))
    in_order = pad_packed_sequence(in_order)[0]
    torch.testing.assert_close((in_order, in_order_h_n), (output[:, order], h_n[..., order, :]))

    if not training:
        for b, piece in enumerate(pieces):
            alone, alone_h_n = module(piece)
            torch.testing.assert_close(alone, output[: len(piece), b])
            torch.testing.assert_close(alone_h_n, h_n[..., b, :])


@pytest.mark.parametrize("stack", STACKS)
def test_initial_states(stack):
    """In the caller's order in every form, with gradients."""
    module = make(stack, "none")
    pieces, lengths = batch(), torch.tensor(LENGTHS)
    shape = module(padded(pieces), lengths=lengths)[1].shape
    hx = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    output, h_n = module(padded(pieces), hx, lengths=lengths)
    (expected,) = torch.autograd.grad(output.sum() + h_n.sum(), hx)
    packed = pack_padded_sequence(padded(pieces), lengths, enforce_sorted=False)
    packed_output, packed_h_n = module(packed, hx)
    loss = packed_output.data.sum() + packed_h_n.sum()
    torch.testing.assert_close(packed_h_n, h_n)
    torch.testing.assert_close(torch.autograd.grad(loss, hx)[0], expected)
    for b, piece in enumerate(pieces):
        alone, alone_h_n = module(piece, hx[..., b, :])
        torch.testing.assert_close(alone, output[: len(piece), b])
        torch.testing.assert_close(alone_h_n, h_n[..., b, :])


@pytest.mark.parametrize("stack", STACKS)
def test_a_reset_is_a_new_sequence(stack):
    """In both directions: the steps before a reset and those from it on know nothing of each
    other. In padding a reset means nothing."""
    module = make(stack, "layer")
    x = torch.randn(10, 2, 5, dtype=torch.float64)
    resets = torch.zeros(10, 2, dtype=torch.bool)
    resets[4] = True
    output, _ = module(x, resets=resets)
    torch.testing.assert_close(output[:4], module(x[:4])[0])
    torch.testing.assert_close(output[4:], module(x[4:])[0])
    resets[8], lengths = True, torch.tensor([8, 10])
    state = torch.rand_like(module(x)[1])
    output, h_n = module(x, state, resets=resets, lengths=lengths)
    alone, alone_h_n = module(x[:8, 0], state[..., 0, :], resets=resets[:8, 0])
    torch.testing.assert_close((output[:8, 0], h_n[..., 0, :]), (alone, alone_h_n))


@pytest.mark.parametrize("norm", ["none", "batch", "per step", "layer"])
@pytest.mark.parametrize("stack", ["layers", "residual", "dense"])
def test_steps_equal_the_full_pass(stack, norm):
    module = make(stack, norm)
    x = torch.randn(9, 3, 5, dtype=torch.float64)
    module(x)  # running statistics of their own
    module.eval()
    output, h_n = module(x)
    assert output.abs().max() > 0.1
    state, rows = None, []
    for t in range(9):
        y, state = module.step(x[t], state, time_step=t)
        rows.append(y)
    torch.testing.assert_close((torch.stack(rows), state), (output, h_n))
    alone, alone_state = module.step(x[0, 1])
    torch.testing.assert_close(alone, output[0, 1])
    assert alone_state.shape == h_n[..., 0, :].shape


def test_steps_of_both_directions_are_refused():
    for stack in ("bidirectional", "both ways"):
        with pytest.raises(ValueError, match="one direction"):
            make(stack, "none").step(torch.randn(3, 5, dtype=torch.float64))


@pytest.mark.parametrize("stack", ["bidirectional", "dense"])
@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.triton), "reference"])
def test_backends_agree(stack, backend):
    module = make(stack, "layer")
    pieces, lengths = batch(), torch.tensor(LENGTHS)

    def results():
        output, h_n = module(padded(pieces), lengths=lengths)
        packed = module(pack_sequence(pieces, enforce_sorted=False))[0].data
        return output, h_n, packed, *gradients(module, output, h_n)

    expected = results()
    with fastindrnn.backend(backend):
        torch.testing.assert_close(results(), expected)


def test_padding_does_not_change_a_statistic():
    """Batch norm learns from the valid steps alone, in one count with or without padding."""
    pieces, lengths = batch(), torch.tensor(LENGTHS)
    for norm in ("batch", "per step"):
        tight, loose = make("layers", norm), make("layers", norm)
        tight(pack_sequence(pieces, enforce_sorted=False))
        loose(padded(pieces), lengths=lengths)
        for (name, a), b in zip(tight.named_buffers(), loose.buffers(), strict=True):
            torch.testing.assert_close(a, b, msg=name)
        fresh = dict(make("layers", norm).named_buffers())
        assert not torch.equal(loose.norm_l0.running_mean, fresh["norm_l0.running_mean"])


def test_batch_norm_is_torchs_over_all_valid_rows():
    pieces, lengths = batch(6), torch.tensor(LENGTHS)
    ours, theirs = nn.BatchNorm1d(6, dtype=torch.float64), nn.BatchNorm1d(6, dtype=torch.float64)
    x = torch.nan_to_num(padded(pieces)).transpose(0, 1)
    sequences = Sequences(4, lengths=lengths)
    valid = sequences.valid(x)
    torch.testing.assert_close(normalize(ours, x, sequences)[valid], theirs(x[valid]))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_step_norm_is_a_batch_norm_for_each_step():
    x = torch.randn(7, 4, 3, dtype=torch.float64)
    ours = StepBatchNorm(3, 4, dtype=torch.float64)
    theirs = [nn.BatchNorm1d(3, dtype=torch.float64) for _ in range(4)]
    sequences = Sequences(7)
    expected = torch.stack([norm(x[:, t]) for t, norm in enumerate(theirs)], 1)
    torch.testing.assert_close(ours(x, sequences), expected)
    torch.testing.assert_close(ours.running_var, torch.stack([n.running_var for n in theirs]))
    ours.eval()
    longer = torch.randn(7, 6, 3, dtype=torch.float64)
    expected = [theirs[min(t, 3)].eval()(longer[:, t]) for t in range(6)]
    torch.testing.assert_close(ours(longer, sequences), torch.stack(expected, 1))
    ours.train()
    ours(x[:, 3:], Sequences(7, first_step=3))  # a stream's fourth step
    for norm in theirs:
        norm.train()
    theirs[3](x[:, 3])
    torch.testing.assert_close(ours.running_var, torch.stack([n.running_var for n in theirs]))
    with pytest.raises(
        ValueError, match=r"norm_steps, or steps .*must be at least the input's 6 time steps"
    ):
        ours(longer, sequences)


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_is_one_mask_over_time(packed):
    module = ResidualIndRNN(5, 300, 1, dropout=0.3, norm=None)
    pieces = [piece.float() for piece in batch()]
    if packed:
        output = pad_packed_sequence(module(pack_sequence(pieces, enforce_sorted=False))[0])[0]
    else:
        output = module(padded(pieces), lengths=torch.tensor(LENGTHS))[0]
    never = (output == 0).all(0)  # dropped, or never active
    in_full = module.eval()(padded(pieces), lengths=torch.tensor(LENGTHS))[0]
    alive = (in_full > 0).any(0)
    dropped = (never & alive).float().mean(1)
    assert ((dropped > 0.05) & (dropped < 0.5)).all()
    assert not torch.equal(never[0], never[1])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, p: m(p, lengths=torch.tensor(LENGTHS)), ValueError, "PackedSequence"),
        (lambda m, p: m(p._replace(data=p.data[:, :4])), ValueError, r"data must be \(total, 5\)"),
        (lambda m, p: m([p]), TypeError, "input must be a tensor or PackedSequence.*list"),
        (lambda m, p: m(p, torch.zeros(2, 3, 6)), ValueError, r"hx must be \(2, 4, 6\)"),
        (lambda m, p: m(p, [0]), TypeError, "hx must be a tensor, but is list"),
        (
            lambda m, p: m(torch.zeros(4, 5), lengths=torch.tensor([4])),
            ValueError,
            "lengths must be None for an input without a batch",
        ),
        (
            lambda m, p: m(torch.zeros(4, 2, 5), resets=torch.zeros(2, 4).bool()),
            ValueError,
            r"resets must be \(4, 2\), but is \(2, 4\)",
        ),
        (lambda m, p: m.step(torch.zeros(4, 2, 5)), ValueError, r"x_t must be \(batch, 5\)"),
        (lambda m, p: m.step(torch.zeros(4)), ValueError, r"x_t must be \(batch, 5\)"),
        (lambda m, p: m.step(torch.zeros(4, 5), torch.zeros(1, 4, 6)), ValueError, "state must be"),
    ],
)
def test_wrong_inputs(call, error, words):
    packed = pack_sequence([piece.float() for piece in batch()], enforce_sorted=False)
    with pytest.raises(error, match=words):
        call(IndRNN(5, 6, 2), packed)
