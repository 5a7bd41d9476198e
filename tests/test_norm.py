"""The norms of layers are PyTorch's modules: of a name, or made by a function."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, ResidualIndRNN
from fastindrnn.fold import fold_norms
from fastindrnn.norm import StepBatchNorm, normalize
from fastindrnn.sequences import Sequences

STACKS = {
    "layers": lambda **options: IndRNN(5, 6, 2, **options),
    "both directions": lambda **options: IndRNN(5, 6, 2, bidirectional=True, **options),
    "residual": lambda **options: ResidualIndRNN(5, 6, 1, **options),
    "dense": lambda **options: DenseIndRNN(5, 2, (2,), **options),
    "both ways": lambda **options: Bidirectional(lambda: ResidualIndRNN(5, 6, 1, **options)),
}
every_stack = pytest.mark.parametrize("make", STACKS.values(), ids=STACKS.keys())


def norms(module, kind):
    return [part for part in module.modules() if type(part) is kind]


@pytest.mark.parametrize("form", ["whole", "lengths", "packed"])
@every_stack
def test_converts_to_sync_batch_norm(make, form):
    """The same numbers in training (in one process, nothing is exchanged) and in evaluation, the
    same names, and padding in no statistic."""
    module = make(norm="batch").double()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module))
    count = len(norms(module, nn.BatchNorm1d))
    assert count > 0
    assert len(norms(converted, nn.SyncBatchNorm)) == count
    assert not norms(converted, nn.BatchNorm1d)
    lengths = torch.tensor([9, 4, 0])
    x, options = torch.randn(9, 3, 5).double(), {}
    if form == "lengths":
        x, options = (
            torch.where((torch.arange(9)[:, None] < lengths)[..., None], x, torch.nan),
            {"lengths": lengths},
        )
    elif form == "packed":
        x = pack_sequence([x[:9, 0], x[:4, 1]])
    for training in (True, False):
        results = []
        for one in (module, converted):
            output, h_n = one.train(training)(x, **options)
            output = output if isinstance(output, torch.Tensor) else output.data
            parameters = [p for p in one.parameters() if p.requires_grad]
            loss = output.sin().sum() + h_n.cos().sum()
            results.append((output, h_n, *torch.autograd.grad(loss, parameters)))
        torch.testing.assert_close(*results)
    state = converted.state_dict()
    assert state.keys() == module.state_dict().keys()
    torch.testing.assert_close(state, module.state_dict())


def test_a_converted_stack_streams_and_folds():
    module = nn.SyncBatchNorm.convert_sync_batchnorm(ResidualIndRNN(5, 6, 1)).eval()
    x, state, rows = torch.randn(9, 3, 5), None, []
    for x_t in x:
        y_t, state = module.step(x_t, state)
        rows.append(y_t)
    expected = module(x)
    torch.testing.assert_close((torch.stack(rows), state), expected)
    folded = fold_norms(module)
    assert len(norms(folded, nn.SyncBatchNorm)) == 1
    torch.testing.assert_close(folded(x), expected)


@pytest.mark.parametrize("momentum", [0.05, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_batch_norm_with_padding_is_torchs_over_all_valid_steps(tracks, affine, momentum):
    options = {"momentum": momentum, "affine": affine, "track_running_stats": tracks, "eps": 0.1}
    ours = nn.BatchNorm1d(6, **options, dtype=torch.float64)
    if affine:
        nn.init.normal_(ours.weight)
        nn.init.normal_(ours.bias)
    theirs, lengths = copy.deepcopy(ours), torch.tensor([4, 9, 1])
    sequences = Sequences(3, lengths=lengths)
    valid = torch.arange(9) < lengths[:, None]
    for training in (True, True, False):
        x = torch.randn(3, 9, 6, dtype=torch.float64) + 1
        y = normalize(ours.train(training), x, sequences)
        torch.testing.assert_close(y[valid], theirs.train(training)(x[valid]))
        assert not y[~valid].any()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@every_stack
def test_a_function_makes_each_norm(make):
    """It is called with the number of channels; what it sets is kept."""

    def factory(channels):
        norm = nn.BatchNorm1d(channels, eps=0.5, momentum=0.25)
        nn.init.constant_(norm.weight, 0.1)
        return norm

    module, named = make(norm=factory), make(norm="batch")
    made, expected = norms(module, nn.BatchNorm1d), norms(named, nn.BatchNorm1d)
    sizes = [norm.num_features for norm in expected]
    assert [norm.num_features for norm in made] == sizes
    assert all((norm.weight == 0.1).all() and norm.eps == 0.5 for norm in made)
    assert module.state_dict().keys() == named.state_dict().keys()
    module(torch.randn(9, 3, 5))
    named.load_state_dict(module.state_dict())
    for norm in norms(named, nn.BatchNorm1d):
        norm.eps = 0.5
    x = torch.randn(9, 3, 5)
    torch.testing.assert_close(module.eval()(x), named.eval()(x))


def test_a_function_makes_norms_of_each_step():
    ours = IndRNN(5, 6, 2, norm=partial(StepBatchNorm, steps=9, momentum=0.1))
    named = IndRNN(5, 6, 2, norm="batch_per_step", norm_steps=9)
    ours.load_state_dict(named.state_dict())
    x = torch.randn(9, 3, 5)
    torch.testing.assert_close(ours(x), named(x))
    torch.testing.assert_close(ours.state_dict(), named.state_dict())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, "steps must be positive, but is 0"),
        ({"steps": 9.0}, TypeError, "steps must be an int, but is float"),
        ({"steps": 9, "momentum": None}, TypeError, "momentum must be a number, but is NoneType"),
    ],
)
def test_wrong_arguments_of_norms_of_each_step(options, error, words):
    with pytest.raises(error, match=words):
        IndRNN(5, 6, norm=partial(StepBatchNorm, **options))


def test_device_and_dtype_are_those_of_the_layer():
    rnn = IndRNN(5, 6, norm=nn.BatchNorm1d, device="meta", dtype=torch.float64)
    assert rnn.norm_l0.weight.device.type == "meta"
    assert rnn.norm_l0.running_mean.dtype == torch.float64


class Centered(nn.Module):
    """Knows nothing of padding."""

    def forward(self, x):
        assert x.dim() == 2
        assert x.isfinite().all()
        return x - x.mean(0)


@pytest.mark.parametrize("time_first", [False, True])
def test_any_module_gets_the_valid_steps_alone(time_first):
    lengths = torch.tensor([4, 9, 0])
    valid = torch.arange(9) < lengths[:, None]
    x = torch.where(valid[..., None], torch.randn(3, 9, 6), torch.nan)
    if time_first:
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    y = normalize(Centered(), x, Sequences(3, time_first, lengths=lengths))
    assert y.stride() == x.stride()
    torch.testing.assert_close(y[valid], x[valid] - x[valid].mean(0))
    assert not y[~valid].any()
    whole = torch.randn(3, 9, 6)
    expected = whole - whole.mean((0, 1))
    torch.testing.assert_close(normalize(Centered(), whole, Sequences(3)), expected)


@pytest.mark.parametrize("norm", [nn.RMSNorm, partial(nn.GroupNorm, 2)], ids=["rms", "group"])
def test_norms_of_each_step_alone(norm):
    """Padding and packing change nothing; a step is a pass. In float64, because a group of 3
    channels may have a tiny deviation."""
    rnn = IndRNN(5, 6, 2, norm=norm).double()
    x, lengths = torch.randn(9, 3, 5, dtype=torch.float64), torch.tensor([9, 4, 1])
    output, h_n = rnn(x, lengths=lengths)
    for b, length in enumerate(lengths):
        alone, last = rnn(x[:length, b])
        torch.testing.assert_close((output[:length, b], h_n[:, b]), (alone, last))
    torch.testing.assert_close(rnn.step(x[0])[0], output[0])


@pytest.mark.parametrize(
    ("norm", "error", "words"),
    [
        ("group", ValueError, "norm must be one of batch, .*, or None, but is 'group'"),
        (1, ValueError, "norm must be one of .* but is 1"),
        (nn.BatchNorm1d(6), TypeError, "is a BatchNorm1d, which all layers would share"),
        (lambda channels: channels, TypeError, "norm must make a module, but made int"),
    ],
)
@every_stack
def test_wrong_norms(make, norm, error, words):
    with pytest.raises(error, match=words):
        make(norm=norm)
    with pytest.raises(ValueError, match=r"norm_steps must be .* otherwise None"):
        make(norm=nn.BatchNorm1d, norm_steps=9)
    with pytest.raises(TypeError, match="norm_steps must be an int, but is float"):
        make(norm="batch_per_step", norm_steps=9.0)
