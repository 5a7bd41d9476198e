"""One time step, which PyTorch's own operations may take: by `step`, a pass and the cell."""

import pytest
import torch

import fastindrnn
from fastindrnn import IndRNN, IndRNNCell


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "bias": False}, {"batch_first": True}])
def test_a_step_in_inference_equals_the_pass(options, dtype):
    """Plain operations take it, with the numbers of the kernels: by `step`, by a pass of one step,
    by the cell; with a state or without, of a batch or of one sequence."""
    rnn = IndRNN(5, 7, **options).to(dtype)
    L = rnn.num_layers
    x, hx = torch.randn(3, 5, dtype=dtype), torch.randn(L, 3, 7, dtype=dtype)
    rows = x[:, None] if rnn.batch_first else x[None]
    for state in (None, hx):
        with torch.enable_grad():
            output, h_n = rnn(rows, state)
        expected = output.squeeze(1 if rnn.batch_first else 0).detach(), h_n.detach()
        with torch.no_grad():
            one_pass, last = rnn(rows, state)
            assert one_pass.shape == output.shape
            torch.testing.assert_close((one_pass.view(3, 7), last), expected)
            y, last = rnn.step(x, state)
            torch.testing.assert_close((y, last), expected)
            last.zero_()
            torch.testing.assert_close(y, expected[0])  # memory of its own
            y, last = rnn.step(x[1], None if state is None else state[:, 1])
            torch.testing.assert_close((y, last), (expected[0][1], expected[1][:, 1]))
            if L == 1:
                cell = IndRNNCell(5, 7).to(dtype)
                cell.load_state_dict(rnn.state_dict())
                torch.testing.assert_close(cell(x, None if state is None else hx[0]), expected[0])


@torch.no_grad()
def test_dropout_of_one_step_without_gradients():
    """A module in training drops, also where plain operations could take the step."""
    rnn, x = IndRNN(3, 50, 2, dropout=0.5), torch.randn(1, 4, 3)
    results = []
    for mode in (torch.no_grad, torch.enable_grad):
        torch.manual_seed(0)
        with mode():
            output, h_n = rnn(x)
            y, _ = rnn.step(x[0])
        results.append((output.detach(), h_n.detach(), y.detach()))
    torch.testing.assert_close(*results)
    assert not torch.allclose(results[0][0], rnn.eval()(x)[0])


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
@torch.no_grad()
def test_a_step_runs_on_the_chosen_backend(backend, monkeypatch):
    from fastindrnn.kernels import cpu, gpu, reference

    room, name = {
        "reference": (reference, "scan"),
        "cpu": (cpu, "indrnn_forward"),
        "triton": (gpu, "indrnn_forward"),
    }[backend]
    run, calls = getattr(room, name), []

    def counted(*arguments, **options):
        calls.append(1)
        return run(*arguments, **options)

    monkeypatch.setattr(room, name, counted)
    x, layer, cell = torch.randn(3, 5), IndRNN(5, 7), IndRNNCell(5, 7)
    expected = layer(x[None]), layer.step(x), cell(x)
    assert not calls, "PyTorch's own operations take a step where no backend was chosen"
    with fastindrnn.backend(backend):
        actual = layer(x[None]), layer.step(x), cell(x)
    assert len(calls) == 3
    torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_a_state_that_fades_ends_at_zero():
    """Numbers below the normal ones would stay for good and make every later product slow."""
    rnn = IndRNN(2, 3, bias=False)
    rnn.weight_hh_l0.fill_(0.75)
    state = torch.full((1, 4, 3), 1e-36)
    for _ in range(50):
        _, state = rnn.step(torch.zeros(4, 2), state)
        assert torch.equal(state, state * (state >= torch.finfo(state.dtype).tiny))
    assert not state.any()


@torch.no_grad()
def test_wrong_steps_in_inference():
    rnn = IndRNN(5, 7, 2)
    with pytest.raises(ValueError, match=r"state must be \(2, 3, 7\), but is \(2, 1, 7\)"):
        rnn.step(torch.randn(3, 5), torch.zeros(2, 1, 7))
    with pytest.raises(TypeError, match="state must be a tensor, but is list"):
        rnn.step(torch.randn(3, 5), [1.0])
    with pytest.raises(TypeError, match=r"weight must be torch\.float64"):
        rnn.step(torch.randn(3, 5).double())
    with pytest.raises(TypeError, match="state must be float32"):
        rnn.step(torch.randn(3, 5), torch.zeros(2, 3, 7).long())
    with pytest.raises(TypeError, match="hx must be float32"):
        IndRNNCell(5, 7)(torch.randn(3, 5), torch.zeros(3, 7).long())


@pytest.mark.parametrize("make", [lambda: IndRNN(3, 4, 2), lambda: IndRNNCell(3, 4)])
def test_a_step_without_a_state_has_gradients_of_zero(make):
    """For u, as a sequence of one step had them: not None, for which others would wait."""
    module = make()
    output = module(torch.randn(1, 3))
    output = output[0] if isinstance(output, tuple) else output
    output.sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert "weight_hh" not in name or not parameter.grad.any()


def test_a_step_under_transforms():
    """PyTorch's own operations: torch.func differentiates them, in both modes."""
    rnn, x = IndRNN(3, 4, batch_first=True), torch.randn(2, 1, 3)

    def call(x):
        return rnn(x)[0].square().sum()

    expected = torch.autograd.grad(call(x.requires_grad_()), x)[0]
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(call)(x), expected)
    tangent = torch.randn_like(x)
    _, slope = torch.func.jvp(call, (x,), (tangent,))
    torch.testing.assert_close(slope, (expected * tangent).sum())
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), rnn(x))
    program = torch.export.export(rnn, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), rnn(x))
