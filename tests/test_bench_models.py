"""The networks that the tasks compare: all are called in one way and keep the same promises."""

import pytest
import torch
from torch import nn

from bench.tasks import models
from fastindrnn import recurrent_max_for

INPUTS, HIDDEN, LAYERS = 3, 16, 2


@pytest.fixture(params=models.KINDS)
def kind(request):
    if request.param == "mingru":
        pytest.importorskip("minGRU_pytorch")
    return request.param


def make(kind, **options):
    return models.make(kind, INPUTS, HIDDEN, LAYERS, **options).double()


def sequences(T=6):
    return torch.randn(4, T, INPUTS, dtype=torch.float64)


def states(state):
    return state if isinstance(state, tuple) else (state,)


def test_a_sequence_in_two_parts_is_the_sequence(kind):
    """The second part goes on from the state after the first."""
    model, x = make(kind).eval(), sequences()
    whole, end = model(x)
    assert whole.shape == (4, 6, model.output_size)
    first, state = model(x[:, :4])
    second, state = model(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(state, end)
    assert not torch.equal(model(x[:, 4:])[0], second)


def test_padding_is_left_out(kind):
    """A sequence is what it is alone, in both directions too, and the state is that of its end."""
    for bidirectional in (False, True):
        if bidirectional and kind == "mingru":
            with pytest.raises(models.UserError, match="has one direction"):
                make(kind, bidirectional=True)
            continue
        model, x = make(kind, bidirectional=bidirectional).eval(), sequences()
        lengths = torch.tensor([6, 2, 5, 1])
        padded, state = model(x, lengths=lengths)
        for index, length in enumerate(lengths):
            alone, _ = model(x[index : index + 1, :length])
            torch.testing.assert_close(padded[index, :length], alone[0])
        if kind != "mingru":  # its state is not used where lengths are
            _, end = model(x[1:2, :2])
            for many, one in zip(states(state), states(end), strict=True):
                torch.testing.assert_close(many[..., 1, :], one[..., 0, :])


@pytest.mark.parametrize("kind", sorted({*models.KINDS} - {"mingru"}))
def test_both_directions_see_what_comes_later(kind):
    x = sequences().requires_grad_()
    for bidirectional in (False, True):
        model = make(kind, bidirectional=bidirectional).eval()
        output, _ = model(x)
        assert output.shape == (4, 6, model.output_size)
        (grad,) = torch.autograd.grad(output[:, 2].sum(), x)
        assert bool(grad[:, 3:].any()) == bidirectional
    assert model.output_size == 2 * make(kind).output_size


def test_dropout_is_for_training_alone(kind):
    model, x = make(kind, dropout=0.5), sequences()
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    torch.testing.assert_close(model(x)[0], model(x)[0], rtol=0, atol=0)


def test_the_gates_of_lstm_that_forget_start_open():
    cells = make("lstm").cells
    for layer in range(LAYERS):
        forget = slice(HIDDEN, 2 * HIDDEN)
        biases = getattr(cells, f"bias_ih_l{layer}") + getattr(cells, f"bias_hh_l{layer}")
        assert biases[forget].eq(1).all()
        assert biases[:HIDDEN].abs().lt(1).all()


@pytest.mark.parametrize("asked", [1, 300, 1_000, 4_321, 50_000])
def test_networks_of_equal_size(asked):
    """Of all multiples of 8 none comes nearer."""

    def build(hidden):
        return nn.Linear(hidden, hidden)

    def distance(hidden):
        return abs(sum(p.numel() for p in build(hidden).parameters()) - asked)

    found = models.hidden_for(asked, build)
    assert found % 8 == 0
    assert distance(found) == min(map(distance, range(8, 400, 8)))


@pytest.mark.parametrize("kind", models.OURS)
def test_the_last_recurrence_forgets_little(kind):
    """Its u are near the bound, those of the others anywhere below."""
    T, high = 100, recurrent_max_for(100, 2)
    init = models.long_memory_last(kind, LAYERS, T, gamma=2)
    model = make(kind, recurrent_init=init, recurrent_max=high)
    *first, last = [p for name, p in model.named_parameters() if "weight_hh" in name]
    assert torch.cat(first).min() < 0.5
    assert last.min() > 0.9
    assert last.max() <= high
