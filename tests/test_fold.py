"""Folded norms give the same outputs and states as the norms."""

import copy

import pytest
import torch
from torch import nn

from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN
from fastindrnn.fold import fold_norms, fold_norms_into

STACKS = {
    "plain": lambda **options: IndRNN(5, 7, 3, **options),
    "one layer": lambda **options: IndRNN(5, 7, **options),
    "both directions": lambda **options: IndRNN(5, 7, 3, bidirectional=True, **options),
    "zoneout": lambda **options: IndRNN(5, 7, 3, zoneout=0.25, **options),
    "residual": lambda **options: ResidualIndRNN(5, 7, 2, **options),
    "dense": lambda **options: DenseIndRNN(5, 3, (2, 1), **options),
    "dense, input first": lambda **options: DenseIndRNN(5, 3, (2, 1), first_features=0, **options),
    "dense, block last": lambda **options: DenseIndRNN(5, 3, (2, 1), last_features=0, **options),
    "bidirectional": lambda **options: Bidirectional(lambda: DenseIndRNN(5, 3, (2,), **options)),
}
# Batch norms that stay: with the norm after, and before.
STAY = {
    "plain": (1, 0),
    "one layer": (1, 0),
    "both directions": (2, 0),
    "zoneout": (1, 0),
    "residual": (1, 3),
    "dense": (1, 0),
    "dense, input first": (1, 0),
    "dense, block last": (2, 0),  # behind both parts of the output: transition and dense layer
    "bidirectional": (2, 0),
}


def trained(module):
    """With norms that are far from the identity."""
    for norm in norms(module):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    for name, parameter in module.named_parameters():
        if "bias_ih" in name:
            nn.init.normal_(parameter)
    return module.eval()


def norms(module):
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]


def assert_equal_to_rounding(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert (a - e).abs().max() <= 1e-12 * e.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("kind", STACKS)
def test_equal_to_rounding(kind, position, bias):
    stack = STACKS[kind](norm="batch", norm_position=position, bias=bias, dtype=torch.float64)
    trained(stack)
    before = copy.deepcopy(stack.state_dict())
    folded = fold_norms(stack)
    assert len(norms(folded)) == STAY[kind][position == "before"]
    for key, value in stack.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the original changed"
    x = torch.randn(11, 3, 5, dtype=torch.float64)
    lengths = torch.tensor([11, 4, 0])
    expected = stack(x, lengths=lengths)
    assert_equal_to_rounding(folded(x, lengths=lengths), expected)
    assert_equal_to_rounding(folded(x, expected[1]), stack(x, expected[1]))
    again = fold_norms(folded)
    assert_equal_to_rounding(again(x), stack(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize("kind", STACKS)
def test_into_the_head(kind, position, bias):
    stack = trained(STACKS[kind](norm="batch", norm_position=position, dtype=torch.float64))
    x = torch.randn(11, 3, 5, dtype=torch.float64)
    y, h_n = stack(x)
    head = nn.Linear(y.shape[-1], 4, bias=bias, dtype=torch.float64)
    folded, reader = fold_norms_into(stack, head)
    stays = kind == "dense, block last" or position == "before"
    assert len(norms(folded)) == (STAY[kind][position == "before"] if stays else 0)
    y_folded, h_n_folded = folded(x)
    assert_equal_to_rounding((reader(y_folded), h_n_folded), (head(y), h_n))


def test_within_a_model_and_its_dtype():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoders = nn.ModuleList([IndRNN(5, 7, 2, norm="batch") for _ in range(2)])
            self.head = nn.Linear(7, 4)

        def forward(self, x):
            return self.head(sum(rnn(x)[0] for rnn in self.encoders))

    model = trained(Model()).train()
    folded = fold_norms(model)
    assert model.training
    assert not folded.training
    assert len(norms(folded)) == 2
    assert {p.dtype for p in folded.parameters()} == {torch.float32}
    x = torch.randn(11, 3, 5)
    torch.testing.assert_close(folded(x), model.eval()(x))
    assert fold_norms(model.bfloat16())(x.bfloat16()).dtype == torch.bfloat16


def test_streaming():
    stack = trained(ResidualIndRNN(5, 7, 2, dtype=torch.float64))
    folded, state, x = fold_norms(stack), None, torch.randn(11, 3, 5, dtype=torch.float64)
    rows = []
    for x_t in x:
        y_t, state = folded.step(x_t, state)
        rows.append(y_t)
    assert_equal_to_rounding((torch.stack(rows), state), stack(x))


@pytest.mark.parametrize(
    "options", [{"norm": None}, {"norm": "layer"}, {"norm": "batch_per_step", "norm_steps": 11}]
)
@pytest.mark.parametrize("kind", ["plain", "residual", "dense"])
def test_other_norms_stay(kind, options):
    stack = STACKS[kind](**options)
    folded, x = fold_norms(stack), torch.randn(11, 3, 5)
    assert folded.state_dict().keys() == stack.state_dict().keys()
    torch.testing.assert_close(folded(x), stack.eval()(x), rtol=0, atol=0)


def test_a_head_without_a_norm_before_it_is_copied():
    stack, head = IndRNN(5, 7), nn.Linear(7, 4)
    folded, reader = fold_norms_into(stack, head)
    assert reader is not head
    x = torch.randn(11, 3, 5)
    torch.testing.assert_close(reader(folded(x)[0]), head(stack(x)[0]), rtol=0, atol=0)


def test_errors():
    stack = IndRNN(5, 7, 2, norm="batch")
    with pytest.raises(TypeError, match="stack must be an IndRNN or another stack, but is Linear"):
        fold_norms_into(nn.Linear(5, 7), nn.Linear(7, 4))
    with pytest.raises(TypeError, match=r"head must be an nn\.Linear, but is IndRNN"):
        fold_norms_into(stack, stack)
    with pytest.raises(ValueError, match="head must read the stack's 7 features, but reads 8"):
        fold_norms_into(stack, nn.Linear(8, 4))
    stack.norm_l0.running_mean = None
    with pytest.raises(ValueError, match="norm_l0 must have running statistics"):
        fold_norms(stack)
