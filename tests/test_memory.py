"""What the neurons remember: numbers against impulses sent through layers, plots, the command."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastindrnn
from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, IndRNNCell, ResidualIndRNN
from fastindrnn.__main__ import main
from fastindrnn.memory import activity, half_life, plot, read_memory


def test_half_life_is_that_of_an_impulse():
    """A neuron that halves in k steps: an impulse through the layer is 1/2 after k steps."""
    k = torch.tensor([1.0, 2.0, 7.0, 20.0], dtype=torch.float64)
    u = 0.5 ** (1 / k)
    torch.testing.assert_close(half_life(u), k)
    torch.testing.assert_close(half_life(-u), k)
    rnn = IndRNN(1, 4, bias=False, dtype=torch.float64)
    nn.init.ones_(rnn.weight_ih_l0)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(u)
        impulse = torch.zeros(21, 1, dtype=torch.float64)
        impulse[0] = 1
        output, _ = rnn(impulse)
    answers = output[k.long(), torch.arange(4)]
    torch.testing.assert_close(answers, torch.full_like(answers, 0.5))


def test_half_life_at_the_ends():
    u = torch.tensor([0.0, 1.0, -1.0, 1.5, math.inf, math.nan])
    lives = half_life(u)
    assert lives.dtype == torch.float64
    assert lives[:5].tolist() == [0.0, math.inf, math.inf, math.inf, math.inf]
    assert lives[5].isnan()


def test_read_memory_of_a_module():
    model = nn.ModuleDict({"stack": IndRNN(5, 64, 2, bidirectional=True), "other": nn.RNN(5, 7)})
    with torch.no_grad():
        model["stack"].weight_hh_l0[:16] = 1
    layers = read_memory(model)
    ends = ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert [layer.name for layer in layers] == [f"stack.weight_hh_{end}" for end in ends]
    first = layers[0]
    assert torch.equal(first.u, model["stack"].weight_hh_l0.detach().double())
    assert first.kept == 0.25
    assert first.half_life.isinf().sum() == 16
    assert first.dead is None
    values = sorted(first.u.tolist())
    assert first.quantiles[0.0] == values[0]
    assert first.quantiles[1.0] == values[-1]
    assert values[31] <= first.quantiles[0.5] <= values[32]


def loop_states(rnn, x):
    """The states of each layer of a plain stack with norms after, by the definition."""
    states = []
    for layer in range(rnn.num_layers):
        w, u = getattr(rnn, f"weight_ih_l{layer}"), getattr(rnn, f"weight_hh_l{layer}")
        b, norm = getattr(rnn, f"bias_ih_l{layer}"), getattr(rnn, f"norm_l{layer}")
        h, rows = x.new_zeros(x.shape[1], rnn.hidden_size), []
        for x_t in x:
            h = torch.relu(x_t @ w.T + b + u * h)
            rows.append(h)
        x = torch.stack(rows)
        states.append(x.transpose(0, 1))
        x = nn.functional.batch_norm(
            x.flatten(0, 1), norm.running_mean, norm.running_var, norm.weight, norm.bias
        ).view(x.shape)
    return states


def test_activity_is_the_states_before_a_norm():
    rnn = IndRNN(5, 7, 3, norm="batch", dropout=0.5)
    for layer in range(3):
        norm = getattr(rnn, f"norm_l{layer}")
        norm.running_mean.normal_()
        nn.init.normal_(norm.bias)
    before = {key: value.clone() for key, value in rnn.state_dict().items()}
    x = torch.randn(11, 3, 5)
    states = activity(rnn, x)
    for layer, expected in enumerate(loop_states(rnn, x)):
        torch.testing.assert_close(states[f"weight_hh_l{layer}"], expected.detach())
    assert rnn.training
    for key, value in rnn.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed"


@pytest.mark.parametrize(
    "make",
    [
        lambda: IndRNN(5, 7, 2, bidirectional=True, norm="layer", norm_position="before"),
        lambda: IndRNN(5, 7, 2, bidirectional=True),
        lambda: ResidualIndRNN(5, 7, 2),
        lambda: Bidirectional(lambda: DenseIndRNN(5, 3, (2,))),
    ],
    ids=["norm before", "plain", "residual", "dense"],
)
@pytest.mark.parametrize("name", [None, "reference"])
def test_activity_finds_every_recurrence(make, name):
    module, x = make(), torch.randn(11, 3, 5)
    with fastindrnn.backend(name):
        states = activity(module, x)
        assert fastindrnn.backend.current == name
    sizes = {layer.name: len(layer.u) for layer in read_memory(module)}
    assert {key: h.shape for key, h in states.items()} == {
        key: (3, 11, size) for key, size in sizes.items()
    }


def test_directions_of_one_call_are_told_apart():
    rnn, x = IndRNN(5, 7, bidirectional=True), torch.randn(11, 3, 5)
    states = activity(rnn, x)
    expected = rnn(x)[0].detach().transpose(0, 1).chunk(2, -1)
    torch.testing.assert_close(states["weight_hh_l0"], expected[0])
    torch.testing.assert_close(states["weight_hh_l0_reverse"], expected[1])


def test_calls_follow_each_other_in_time():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = IndRNNCell(5, 7)

        def forward(self, x):
            h = None
            for x_t in x:
                h = self.cell(x_t, h)
            return h

    loop, x = Loop(), torch.randn(11, 3, 5)
    rnn = IndRNN(5, 7)
    rnn.load_state_dict(loop.cell.state_dict())
    h = activity(loop, x)["cell.weight_hh_l0"]
    torch.testing.assert_close(h.transpose(0, 1), rnn(x)[0].detach())
    loop.forward = lambda x: [loop.cell(x[0]), loop.cell(x[0, :2])]
    with pytest.raises(ValueError, match=r"must call cell\.weight_hh_l0 with one size of batch"):
        activity(loop, x)


def test_dead_neurons():
    rnn = IndRNN(2, 4)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(torch.tensor([[1.0, 0], [0, 1], [0, -1], [0, 0]]))
        rnn.bias_ih_l0.copy_(torch.tensor([0.0, 0, 0, -1]))
    positive = torch.ones(6, 3, 2)
    negative = torch.tensor([1.0, -1.0]).expand(6, 3, 2)
    (layer,) = read_memory(rnn, [positive])
    assert layer.dead.tolist() == [False, False, True, True]
    (layer,) = read_memory(rnn, [positive, (negative, torch.zeros(1, 3, 4))])
    assert layer.dead.tolist() == [False, False, False, True]


def test_errors():
    with pytest.raises(TypeError, match="source must be a module or a dict, but is list"):
        read_memory([])
    with pytest.raises(TypeError, match="batches need a module to run, but source is dict"):
        read_memory({}, [])
    with pytest.raises(TypeError, match="batches must be an iterable of inputs"):
        read_memory(IndRNN(5, 7), torch.randn(11, 3, 5))
    with pytest.raises(ValueError, match="zoneout must be 0 to see its states"):
        activity(IndRNN(5, 7, zoneout=0.1), torch.randn(11, 3, 5))
    with pytest.raises(ValueError, match="layers must hold at least one layer"):
        plot([])


@pytest.mark.parametrize("with_states", [False, True])
def test_plot(tmp_path, with_states):
    rnn, x = IndRNN(5, 7, 2), torch.randn(11, 3, 5)
    with torch.no_grad():
        rnn.weight_hh_l0[:3] = torch.tensor([0.0, 1.0, -2.0])
    layers = read_memory(rnn, [x])
    states = activity(rnn, x) if with_states else None
    figure = plot(layers, states, path=tmp_path / "memory.png", neurons=5)
    assert (tmp_path / "memory.png").stat().st_size > 0
    panels = [axes for axes in figure.axes if axes.get_xlabel()]
    assert len(panels) == (6 if with_states else 4)
    assert panels[1].get_title() == "2 of 7 neurons forget nothing"
    assert len(panels[1].lines[0].get_ydata()) == 5
    if with_states:
        chosen = layers[0].u.abs().argsort()[torch.linspace(0, 6, 5).round().long()]
        image = torch.as_tensor(panels[2].images[0].get_array())
        shown = states["weight_hh_l0"][0][:, chosen].T
        peaks = shown.amax(1, keepdim=True)
        torch.testing.assert_close(image.float() * peaks, shown)


FORMS = {
    "state dict": lambda state: state,
    "a dict that holds one": lambda state: {"epoch": 3, "model": state},
    "bench's": lambda state: {"learners": {"ours": {"model": state, "losses": [0.5, 0.25]}}},
}


@pytest.mark.parametrize("form", FORMS)
def test_inspect(form, tmp_path, capsys):
    rnn = IndRNN(5, 4, 2)
    with torch.no_grad():
        rnn.weight_hh_l0.copy_(torch.tensor([0.0, 0.5, 0.5, 1.0]))
        rnn.weight_hh_l1.copy_(torch.tensor([0.25, 0.25, 0.25, 0.5]))
    torch.save(FORMS[form](rnn.state_dict()), tmp_path / "trained.pt")
    assert main(["inspect", str(tmp_path / "trained.pt"), "--out", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    _, first, second, last = printed.out.splitlines()
    words = ["4", "0.0000", "0.5000", "1.0000", "25.0%", "1", "inf"]
    assert first.split()[0].endswith("weight_hh_l0")
    assert first.split()[1:] == words
    assert second.split()[1:] == ["4", "0.2500", "0.2500", "0.5000", "0.0%", "0.5", "1"]
    path = tmp_path / "new" / "trained.memory.png"
    assert last == f"plot: {path}"
    assert path.stat().st_size > 0


def test_inspect_refuses(tmp_path, capsys):
    (tmp_path / "broken.pt").write_bytes(b"no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(nn.RNN(5, 7).state_dict(), tmp_path / "other.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    torch.save(IndRNN(5, 7), tmp_path / "module.pt")
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "script.pt")
    torch.save(IndRNN(5, 7).state_dict(), tmp_path / "good.pt")
    expected = {
        "missing.pt": "there is no file",
        "broken.pt": "is no checkpoint that can be read",
        "empty.pt": "is no checkpoint that can be read",
        "module.pt": "it holds more than tensors and plain values",
        "script.pt": "it holds more than tensors and plain values",
        "other.pt": "holds no recurrent vector",
        "tensor.pt": "holds no recurrent vector",
    }
    for name, text in expected.items():
        assert main(["inspect", str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert text in printed.err
        assert str(tmp_path / name) in printed.err
        assert len(printed.err.splitlines()) == 1
        assert "weights_only" not in printed.err, "no advice to run what is in the file"
    assert main(["inspect", str(tmp_path / "good.pt"), "--out", str(tmp_path / "good.pt")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_command_line(tmp_path):
    torch.save(IndRNN(5, 7).state_dict(), tmp_path / "trained.pt")
    command = [sys.executable, "-m", "fastindrnn", "inspect", "trained.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "weight_hh_l0" in done.stdout
    assert (tmp_path / "trained.memory.png").exists()
