"""The layers within PyTorch's machinery: compile, export, AMP, checkpoints, vmap, DDP and the
rest."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastindrnn
from fastindrnn import Bidirectional, DenseIndRNN, IndRNN, IndRNNCell, ResidualIndRNN

MODULES = {
    "layers": lambda **o: IndRNN(5, 6, 2, bidirectional=True, norm="batch", **o),
    "residual": lambda **o: ResidualIndRNN(5, 6, 1, norm="layer", **o),
    "dense": lambda **o: DenseIndRNN(5, 2, (2,), **o),
    "both ways": lambda **o: Bidirectional(lambda: IndRNN(5, 6, 2, norm="layer", **o)),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


def results(module, x, **options):
    """Output, last states and the gradients of the parameters."""
    output, h_n = module(x, **options)
    parameters = list(module.parameters())
    loss = output.float().square().sum() + h_n.float().sin().sum()
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return output.detach(), h_n.detach(), *grads


@every_module
def test_compile(make):
    """Without a graph break, forward and backward."""
    module, x = make(), torch.randn(9, 3, 5)
    expected = results(copy.deepcopy(module), x)
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(results(compiled, x), expected, rtol=1e-4, atol=1e-4)


def test_compile_once_for_all_lengths():
    """The second length of a sequence makes time dynamic; no later one compiles again."""
    torch._dynamo.reset()
    module = IndRNN(5, 6, 2, bidirectional=True)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for T in (9, 12, 7, 30, 101):
        x, lengths = torch.randn(T, 3, 5), torch.tensor([T, T - 5, 2])
        expected = results(module, x, lengths=lengths)
        torch.testing.assert_close(results(compiled, x, lengths=lengths), expected)
    assert counter.frame_count <= 2


def test_compiled_step():
    module = ResidualIndRNN(5, 6, 2).eval()
    compiled = torch.compile(module.step, fullgraph=True)
    state = expected_state = torch.randn(5, 3, 6)
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(3, 5)
            y, state = compiled(x, state)
            expected, expected_state = module.step(x, expected_state)
            torch.testing.assert_close((y, state), (expected, expected_state))


@every_module
def test_export(make):
    """With a dynamic number of steps and sequences."""
    module, x = make().eval(), torch.randn(9, 3, 5)
    dims = {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}
    program = torch.export.export(module, (x,), dynamic_shapes=({**dims},), strict=False)
    for shape in ((9, 3, 5), (20, 4, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), module(x))


def test_export_with_lengths():
    module = IndRNN(5, 6, 2, bidirectional=True)
    x, lengths = torch.randn(9, 3, 5), torch.tensor([9, 4, 0])
    program = torch.export.export(module, (x,), {"lengths": lengths}, strict=False)
    actual = program.module()(x, lengths=lengths)
    torch.testing.assert_close(actual, module(x, lengths=lengths))


@every_module
def test_autocast(make):
    """bfloat16 products, float32 parameters and gradients; near the float32 results."""
    module, x = make(), torch.randn(9, 3, 5)
    module.train(False)
    expected = results(module, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = results(module, x)
    assert {grad.dtype for grad in actual[2:]} == {torch.float32}
    for a, e in zip(actual[:2], expected[:2], strict=True):
        assert (a - e).norm() <= 0.05 * e.norm() + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@every_module
def test_dtypes(make, dtype):
    module = make().to(dtype)
    output, h_n = module(torch.randn(9, 3, 5, dtype=dtype))
    assert output.dtype == h_n.dtype == dtype
    output.sum().backward()
    assert all(p.grad.dtype == dtype for p in module.parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    module, x = IndRNN(5, 6, 2), torch.randn(9, 3, 5, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].square().sum(), x)
    again = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=use_reentrant)[0]
    again.square().sum().backward()
    torch.testing.assert_close(x.grad, expected[0])


@every_module
def test_functional_call(make):
    module, other, x = make().eval(), make().eval(), torch.randn(9, 3, 5)
    state = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    torch.testing.assert_close(torch.func.functional_call(module, state, x), other(x))


@pytest.mark.parametrize("mapped_input", [False, True])
def test_vmap_over_models(mapped_input):
    """A batch of models side by side (stack_module_state), forward and backward. In float64,
    because the terms of a gradient's sum over the steps cancel."""
    models = [IndRNN(5, 6, 2, bidirectional=True, batch_first=True).double() for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(*[3] * mapped_input, 4, 9, 5, dtype=torch.float64)
    lengths = torch.tensor([9, 4, 0, 1])

    def call(parameters, x):
        return torch.func.functional_call(models[0], (parameters, buffers), x, {"lengths": lengths})

    outputs, h_ns = torch.vmap(call, (0, 0 if mapped_input else None))(parameters, x)
    loss = outputs.square().sum() + h_ns.sum()
    grads = torch.autograd.grad(loss, list(parameters.values()))
    for i, model in enumerate(models):
        output, h_n = model(x[i] if mapped_input else x, lengths=lengths)
        torch.testing.assert_close((outputs[i], h_ns[i]), (output, h_n))
        loss = output.square().sum() + h_n.sum()
        alone = torch.autograd.grad(loss, list(model.parameters()))
        torch.testing.assert_close([grad[i] for grad in grads], list(alone))


def test_vmap_over_lengths_is_refused():
    a, u = torch.randn(2, 9, 5), torch.rand(5)

    def call(lengths):
        return torch.ops.fastindrnn.scan(a, u, None, lengths, None, None, "relu", "forward", None)

    with pytest.raises(ValueError, match="vmap over lengths"):
        torch.vmap(call)(torch.tensor([[9, 4], [1, 2]]))


@every_module
def test_copies(make):
    module, x = make(), torch.randn(9, 3, 5)
    module(x)  # running statistics
    module.eval()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = make().eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for other in (fresh, copy.deepcopy(module)):
        torch.testing.assert_close(other(x), module(x))


def test_pickle():
    for module in (IndRNN(5, 6, 2, norm="batch"), ResidualIndRNN(5, 6, 1), IndRNNCell(5, 6)):
        x = torch.randn(9, 5)
        torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), module(x))


@every_module
def test_meta_device(make):
    module = make(device="meta")
    output, h_n = module(torch.empty(9, 3, 5, device="meta"))
    like = make()(torch.randn(9, 3, 5))
    assert (output.shape, h_n.shape) == (like[0].shape, like[1].shape)
    module.to_empty(device="cpu")
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert all(p.isfinite().all() for p in module.parameters())
    biases = [p for name, p in module.named_parameters() if "bias" in name]
    assert not any(bias.any() for bias in biases)
    assert module(torch.randn(9, 3, 5))[0].isfinite().all()


_DISTRIBUTED = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from fastindrnn import IndRNN, ResidualIndRNN

def main(rank, world, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    # The second one's layers are one operator.
    for module in (ResidualIndRNN(5, 6, 1, norm="layer"), IndRNN(5, 6, 3)):
        x = torch.randn(9, 4, 5)
        expected = torch.autograd.grad(module(x)[0].square().mean(), list(module.parameters()))
        parallel = DistributedDataParallel(module)
        parallel(x[:, 2 * rank : 2 * rank + 2])[0].square().mean().backward()
        for parameter, grad in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad)
    dist.destroy_process_group()

if __name__ == "__main__":
    # A forked process does not import anew.
    method = "fork" if sys.platform == "linux" else "spawn"
    torch.multiprocessing.start_processes(main, (2, sys.argv[1]), 2, start_method=method)
"""


def test_distributed_data_parallel(tmp_path):
    """Two processes, half of the batch each: the gradients of the whole batch."""
    script = tmp_path / "distributed.py"
    script.write_text(_DISTRIBUTED)
    command = [sys.executable, str(script), str(tmp_path / "store")]
    subprocess.run(command, check=True, timeout=600)  # it could hang


def test_fading_gradients_of_a_deep_stack():
    """21 recurrences over 1,000 steps, 100 steps of training: finite and falling loss, gradients at
    the first recurrence of the order of those at the last."""
    torch.manual_seed(0)
    T = 1000
    bound = fastindrnn.recurrent_max_for(T)
    module = ResidualIndRNN(2, 16, 10, recurrent_max=bound, grad_clip=10.0)
    head = nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*module.parameters(), *head.parameters()], 1e-3)
    fastindrnn.constrain_after_step(optimizer, module)
    losses, norms = [], []
    for _ in range(100):
        x = torch.rand(T, 4, 2)
        target = x[..., 0].mean(0)
        loss = (head(module(x)[0][-1])[:, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append([module.blocks[i]["second"].weight_ih.grad.norm().item() for i in (0, -1)])
        optimizer.step()
        losses.append(loss.item())
    first, last = torch.tensor(norms).median(0).values.tolist()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.4f}")
    print(f"median |grad W|: first block {first:.3f}, last block {last:.3f}")
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert 0.1 < first / last < 10
