"""What a training step keeps, in bytes: x and the h of each layer, and nothing else of their
size."""

import json
from unittest import mock

import pytest
import torch
from torch import nn

from fastindrnn import IndRNN
from fastindrnn import plan as planning
from fastindrnn.functional import indrnn

B, T, N = 4, 1500, 64
ROWS = B * T * N * 4  # bytes of x, or of an h, in float32
# Parameters, states, lengths and the like: nothing that grows with time.
SMALL = 6 * 2 * (N * 2 * N + 3 * N + B * N) * 4 * 2


def saved(call):
    """Bytes that autograd keeps for the backward, each piece of memory once, and the output."""
    pieces = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        pieces[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    return sum(pieces.values()), output


def layer(**options):
    parameters = [torch.randn(N, N), torch.randn(N), torch.rand(N)]
    weight, bias, u = (parameter.requires_grad_() for parameter in parameters)
    return lambda x: indrnn(x, weight, bias, u, **options)[0]


def stacked(one_by_one=False, **options):
    module = IndRNN(N, N, 6, batch_first=True, **options)
    if not one_by_one:
        return lambda x: module(x)[0]

    def call(x):
        with mock.patch.object(planning, "_STACK", planning._INFERENCE):
            return module(x)[0]

    return call


LENGTHS = torch.tensor([1500, 1, 700, 0])
# What is called; how many times the bytes of x, or of one h, it keeps, with x; and how many it has
# at its highest, beside x and the gradient that comes. A layer has its h, d and dx then; with
# lengths also an x without what stood in the padding. A stack has all h and two d, or layer by
# layer one more.
CASES = {
    "layer": (layer(), 2, 1 + 2),
    "layer with a clip": (layer(grad_clip=1.0), 2, 1 + 2),
    "layer with lengths": (layer(lengths=LENGTHS), 2, 1 + 3),
    "layer in both directions": (layer(direction="both"), 2, 1 + 2),
    "stack": (stacked(), 1 + 6, 6 + 2),
    "stack, layer by layer": (stacked(one_by_one=True), 1 + 6, 6 + 3),
    "stack in both directions": (stacked(bidirectional=True), 1 + 2 * 6, 2 * (6 + 3)),
}
every_case = pytest.mark.parametrize(("call", "kept", "peak"), CASES.values(), ids=CASES.keys())


@pytest.mark.parametrize("needs_x", [False, True])
@every_case
def test_saved_for_the_backward(call, kept, peak, needs_x):
    x = torch.randn(B, T, N, requires_grad=needs_x)
    size, output = saved(lambda: call(x))
    assert kept * ROWS <= size <= kept * ROWS + SMALL
    output.sum().backward()


@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize("layers", [1, 6])
def test_an_input_is_not_kept_for_a_frozen_weight(layers, needs_x):
    """Which alone would read it in the backward."""
    module = IndRNN(N, N, layers, batch_first=True)
    module.weight_ih_l0.requires_grad_(False)
    x = torch.randn(B, T, N, requires_grad=needs_x)
    # Not x itself, which is alive as long as the test holds it: a copy that the call alone keeps.
    size, output = saved(lambda: module(x * 1)[0])
    assert layers * ROWS <= size <= layers * ROWS + SMALL
    output.sum().backward()
    assert module.weight_hh_l0.grad.isfinite().all()


@pytest.mark.parametrize("form", ["lengths", "packed", "time first"])
def test_saved_in_other_forms(form):
    module = IndRNN(N, N, 6)
    x, options = torch.randn(T, B, N), {}
    if form == "lengths":
        options["lengths"] = LENGTHS
    elif form == "packed":
        x = nn.utils.rnn.pack_sequence([torch.randn(T, N) for _ in range(B)])
    size, _ = saved(lambda: module(x, **options)[0])
    assert 7 * ROWS <= size <= 7 * ROWS + SMALL


@pytest.mark.parametrize("one_by_one", [False, True])
def test_saved_under_autocast(one_by_one):
    """In half the bytes: x is cast once, the parameters are cast too."""
    call, x = stacked(one_by_one), torch.randn(B, T, N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        size, output = saved(lambda: call(x))
    assert output.dtype == torch.bfloat16
    assert 7 * ROWS // 2 <= size <= 7 * ROWS // 2 + SMALL


def peak_of(call, path):
    """Bytes of PyTorch's memory at the highest, above those at the start."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event["args"] for event in events if event.get("name") == "[memory]"]
    start = memory[0]["Total Allocated"] - memory[0]["Bytes"]
    return max(event["Total Allocated"] for event in memory) - start


@every_case
def test_peak_of_a_step(call, kept, peak, tmp_path):
    x = torch.randn(B, T, N, requires_grad=True)
    grad = torch.randn_like(call(x))

    def step():
        torch.autograd.grad(call(x), x, grad)

    step()
    size = peak_of(step, tmp_path / "trace.json")
    assert peak * ROWS <= size <= peak * ROWS + SMALL


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("layers", [1, 6])
def test_peak_of_a_step_on_a_gpu(layers):
    """x, the h of each layer, the gradient that comes, two d; weights and their gradients."""
    shape = (16, 1024, 512)
    module = IndRNN(512, 512, layers, batch_first=True).cuda()
    x = torch.randn(shape, device="cuda", requires_grad=True)
    grad = torch.randn(shape, device="cuda")
    for _ in range(2):
        module(x)[0].backward(grad)
    rows = x.numel() * 4
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    x.grad = None
    module(x)[0].backward(grad)
    peak = torch.cuda.max_memory_allocated() - before + rows  # x's old gradient was freed
    print(f"peak {peak / rows:.2f} times x")
    assert peak <= (layers + 2) * rows + layers * 8 * 512 * 512 * 4 + 2**25
