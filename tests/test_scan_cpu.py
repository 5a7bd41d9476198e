"""The compiled CPU loops against the reference."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from fastindrnn.kernels.cpu.launch import _plan
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import Case, cases, check_scan, inputs
from tolerance import FLOOR, assert_close_to_reference
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastindrnn.kernels import cpu, reference

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@settings(max_examples=300, deadline=None)
@given(cases(T=60, N=130))
def test_against_reference(case):
    check_scan(case, cpu.scan_forward, cpu.scan_backward)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 70, 1100), (33, 20, 129), (3, 400, 65), (2, 2, 20_000)])
def test_large_shapes_on_several_threads(shape, dtype):
    """Above the size from which more than one thread works, with channels cut into runs."""
    for reverse in (False, True):
        check_scan(
            Case(*shape, dtype=dtype, reverse=reverse, form="lengths", grad_clip=2.0),
            cpu.scan_forward,
            cpu.scan_backward,
        )


@settings(max_examples=200, deadline=None)
@given(cases(T=60, N=40), st.integers(1, 9))
def test_chunks_of_time_against_reference(case, chunks):
    chunks = 1 if case.nonlinearity == "tanh" else chunks
    check_scan(case, cpu.scan_forward, cpu.scan_backward, chunks=chunks)


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
def test_chunks_as_planned_on_several_threads(nonlinearity):
    """One sequence of few channels: time is cut once there are threads to share it."""
    threads = torch.get_num_threads()
    case = Case(1, 4200, 64, nonlinearity=nonlinearity, grad_clip=2.0, has_resets=True)
    try:
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            assert (_plan(1, 4200, 64, number, None, True)[2] > 1) == (number > 1)
            check_scan(case, cpu.scan_forward, cpu.scan_backward)
    finally:
        torch.set_num_threads(threads)


def test_tanh_cannot_be_cut_in_time():
    a = torch.zeros(1, 8, 2)
    with pytest.raises(ValueError, match="tanh"):
        cpu.scan_forward(a, torch.ones(2), None, a, nonlinearity="tanh", chunks=2)


@pytest.mark.parametrize("nonlinearity", ["relu", "identity", "hardtanh", "relu6"])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_stays_until_a_reset_across_chunks(nonlinearity, chunks):
    """Also where u is 0 or the state has faded to 0 since."""
    a = torch.zeros(2, 40, 7)
    a[:, 3] = torch.nan
    u = torch.tensor([0.0, 1e-9, -1e-9, 0.5, -1.0, 1e9, -1e25])
    resets = torch.zeros(2, 40, dtype=torch.bool)
    resets[1, 21] = True
    h, options = torch.empty_like(a), {"nonlinearity": nonlinearity, "resets": resets}
    h_n = cpu.scan_forward(a, u, None, h, **options, chunks=chunks)
    assert h[0, 3:].isnan().all()
    assert h[1, 3:21].isnan().all()
    assert (h[1, 21:] == 0).all()
    assert h_n[0].isnan().all()
    assert (h_n[1] == 0).all()


@pytest.mark.parametrize("grad_clip", [None, 1.0])
@pytest.mark.parametrize("chunks", [1, 5])
def test_nan_message_stays_until_a_bound_stops_it(grad_clip, chunks):
    h = torch.ones(1, 40, 5)
    h[0, 9] = 0.0
    grad_h = torch.zeros(1, 40, 5)
    grad_h[0, 37] = torch.nan
    u = torch.tensor([0.0, 1e-9, -1e-9, 1.0, 1e25])
    options = {"grad_clip": grad_clip, "chunks": chunks}
    grad_a, _, grad_h0, _ = cpu.scan_backward(grad_h, None, h, u, None, **options)
    assert grad_a[0, 10:38].isnan().all()
    assert (grad_a[0, :10] == 0).all()
    assert (grad_a[0, 38:] == 0).all()
    assert (grad_h0 == 0).all()


@pytest.mark.parametrize("nonlinearity", ["relu", "hardtanh", "relu6"])
@pytest.mark.parametrize("negative", [False, True])
def test_bounds_hold_infinities_across_chunks(nonlinearity, negative):
    """A fold forms no inf - inf and no 0 * inf out of what a bound has already cut off."""
    a = torch.zeros(3, 40, 6)
    a[0, 3], a[0, 17] = -torch.inf, -torch.inf
    if nonlinearity != "relu":
        a[1, 3], a[2, 3], a[2, 4] = torch.inf, -torch.inf, torch.inf
    u = torch.tensor([0.0, 1e-9, 0.5, 1.0, 1e25, 1e9]) * (-1 if negative else 1)
    h = torch.empty_like(a)
    cpu.scan_forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5)
    torch.testing.assert_close(h, reference.scan(a, u, nonlinearity=nonlinearity)[0])


def test_zero_times_an_overflowed_power_of_u_is_zero():
    a, u, h = torch.zeros(1, 40, 2), torch.tensor([1e9, -1e9]), torch.empty(1, 40, 2)
    for nonlinearity in ("relu", "identity"):
        cpu.scan_forward(a, u, None, h, nonlinearity=nonlinearity, chunks=5)
        assert (h == 0).all()


def test_same_bits_with_chunks_on_each_run_and_number_of_threads():
    (a, u, h0, options), (grad_h, grad_h_n) = inputs(Case(2, 300, 200, form="lengths"))
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 4, 2):
            torch.set_num_threads(number)
            h = torch.empty_like(a)
            h_n = cpu.scan_forward(a, u, h0, h, **options, chunks=4)
            backward = cpu.scan_backward(grad_h, grad_h_n, h, u, h0, **options, chunks=4)
            results.append((h, h_n, *backward))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.parametrize("reverse", [False, True])
def test_long_rows_of_time_first_batches(reverse):
    """All sequences of a step lie in one row, wider than one run of channels."""
    case = Case(33, 50, 129, reverse=reverse, time_first=True, grad_clip=2.0)
    check_scan(case, cpu.scan_forward, cpu.scan_backward)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(shape):
    B, _, N = shape
    a, u, h0 = torch.randn(shape), torch.rand(N), torch.randn(B, N)
    h = torch.empty_like(a)
    h_n = cpu.scan_forward(a, u, h0, h)
    grads = cpu.scan_backward(torch.randn(shape), torch.ones(B, N), h, u, h0)
    assert [grad.shape for grad in grads] == [shape, (N,), (B, N), (N,)]
    if shape[1] == 0:
        assert torch.equal(h_n, h0)
        assert torch.equal(grads[2], torch.ones(B, N))


@pytest.mark.parametrize("reverse", [False, True])
def test_in_place(reverse):
    (a, u, h0, options), _ = inputs(Case(3, 50, 300, reverse=reverse))
    h = torch.full_like(a, torch.nan)
    cpu.scan_forward(a, u, h0, h, **options)
    cpu.scan_forward(a, u, h0, a, **options)
    assert torch.equal(a, h)


@pytest.mark.parametrize("nonlinearity", list(reference.ACTIVATIONS))
def test_nan_stays_in_its_channel_from_its_step_on(nonlinearity):
    (a, u, h0, options), _ = inputs(Case(2, 30, 20, nonlinearity=nonlinearity))
    a[1, 7, 3] = torch.nan
    h = torch.empty_like(a)
    cpu.scan_forward(a, u, h0, h, **options)
    assert torch.equal(h.isnan(), reference.scan(a, u, h0, **options)[0].isnan())
    assert h[1, 7:, 3].isnan().all()


def test_same_bits_on_each_run_and_number_of_threads():
    (a, u, h0, options), (grad_h, grad_h_n) = inputs(Case(5, 200, 100))

    def run():
        h = torch.empty_like(a)
        h_n = cpu.scan_forward(a, u, h0, h, **options)
        return h, h_n, *cpu.scan_backward(grad_h, grad_h_n, h, u, h0, **options)

    first, threads = run(), torch.get_num_threads()
    try:
        for number in (threads, 1, 2, 3):
            torch.set_num_threads(number)
            assert all(torch.equal(x, y) for x, y in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(threads)


def test_number_of_threads_is_torchs():
    """With one thread nothing is started; with several, as many as torch is told work."""
    script = """if True:
        import os, torch
        from fastindrnn.kernels import cpu
        threads = lambda: len(os.listdir("/proc/self/task"))
        torch.set_num_threads(1)
        a, u = torch.randn(16, 100, 512), torch.rand(512)
        before = threads()
        cpu.scan_forward(a, u, None, torch.empty_like(a))
        assert threads() == before, "one thread was asked for"
        torch.set_num_threads(3)
        cpu.scan_forward(a, u, None, torch.empty_like(a))
        assert threads() == before + 2, (before, threads())
    """
    if not os.path.exists("/proc/self/task"):
        pytest.skip("counts threads through /proc")
    subprocess.run([sys.executable, "-c", script], check=True)


def test_concurrent_calls():
    """Eight Python threads at once, each with its own problem: none crashes or mixes up results."""
    problems = [inputs(Case(4, 300, 64, seed=i))[0] for i in range(8)]
    expected = []
    for a, u, h0, options in problems:
        h = torch.empty_like(a)
        cpu.scan_forward(a, u, h0, h, **options)
        expected.append(h)
    wrong, barrier = [], threading.Barrier(len(problems))

    def work(i):
        a, u, h0, options = problems[i]
        barrier.wait()
        for _ in range(20):
            h = torch.full_like(a, torch.nan)
            cpu.scan_forward(a, u, h0, h, **options)
            if not torch.equal(h, expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


_CHILD = """if True:
    import sys, torch
    from torch.utils.data import DataLoader, Dataset
    from fastindrnn.kernels import cpu

    def scan(seed):
        a = torch.randn(4, 300, 64, generator=torch.Generator().manual_seed(seed))
        h = torch.empty_like(a)
        cpu.scan_forward(a, torch.linspace(0, 1, 64), None, h)
        return h

    class Scans(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return scan(i)

    def child(queue, seed):
        queue.put(scan(seed).numpy())

    def main():
        expected = [scan(i) for i in range(4)]  # the parent's threads exist by now
        if sys.argv[1] == "loader":
            loader = DataLoader(Scans(), 1, num_workers=2, multiprocessing_context="fork")
            results = [h[0] for h in loader]
        else:
            context = torch.multiprocessing.get_context(sys.argv[1])
            results = []
            for i in range(4):
                queue = context.SimpleQueue()
                process = context.Process(target=child, args=(queue, i))
                process.start()
                results.append(torch.from_numpy(queue.get()))
                process.join()
                assert process.exitcode == 0
        for h, e in zip(results, expected, strict=True):
            assert torch.equal(h, e)

    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("start", ["loader", "fork", "spawn"])
def test_in_child_processes(start, tmp_path):
    """In a forked child, a DataLoader's worker, a spawned one, after the parent's threads ran."""
    if start != "spawn" and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    script = tmp_path / "children.py"
    script.write_text(_CHILD.replace("if True:\n", "", 1).replace("\n    ", "\n").lstrip())
    command = [sys.executable, str(script), start]
    subprocess.run(command, check=True, timeout=600)  # it could hang


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_fades_becomes_zero_not_subnormal(dtype):
    """Arithmetic with subnormal numbers is tens of times slower, and rounding keeps them alive."""
    a = torch.zeros(1, 4000, 8, dtype=dtype)
    a[:, 0] = 1
    u = torch.linspace(0.3, 0.9, 8, dtype=dtype)
    h, grad_h = torch.empty_like(a), torch.zeros_like(a)
    cpu.scan_forward(a, u, None, h, nonlinearity="identity")
    grad_h[:, -1] = 1
    d = cpu.scan_backward(grad_h, None, h, u, None, nonlinearity="identity")[0]
    for x in (h, d):
        assert not ((x != 0) & (x.abs() < torch.finfo(dtype).tiny)).any()
        assert (x != 0).any(1).all()


def _scan_and_gradients(a, u, h0, grad_h, chunks, grad_clip=None, h=None, **options):
    """h, h_n and the gradients, which start from the h given, so that two ways have the same."""
    result = torch.empty_like(a)
    h_n = cpu.scan_forward(a, u, h0, result, **options, chunks=chunks)
    h = result if h is None else h
    clip = {"grad_clip": grad_clip, "chunks": chunks}
    return result, h_n, *cpu.scan_backward(grad_h, None, h, u, h0, **options, **clip)


def _same_kind(x, y):
    """Whether NaN, infinities and finite numbers stand in the same places."""
    same = x.isnan() == y.isnan()
    return (same & (x.isposinf() == y.isposinf()) & (x.isneginf() == y.isneginf())).all()


def _finite_everywhere(*tensors):
    """The tensors with 0 where any of them is not finite."""
    finite = torch.stack([x.isfinite() for x in tensors]).all(0)
    return [torch.where(finite, x, 0) for x in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("nonlinearity", "T", "u", "scale", "shift"),
    [
        ("relu", 65536, [1.004], 1, -0.5),
        ("relu", 4096, [1.1, 1.2], 1, -1.5),
        ("relu", 4096, [-1.1, -3.0, 6.0], 1, 0),
        ("relu", 8192, [0.9, 0.99, 1.0, 1.001, 1.01], 1, -0.5),
        ("hardtanh", 4096, [1.3, -1.5, 5.0], 0.05, 0),
        ("hardtanh", 65536, [1.05], 0.05, 0),
        ("relu6", 4096, [1.3, -1.3], 1, -2),
        ("identity", 4096, [0.9, 1.0, -1.0, 1.01, -1.01], 1, 0),
    ],
)
def test_growing_maps_in_chunks(nonlinearity, T, u, scale, shift, dtype):
    """|u|^steps of a chunk overflows, or comes close, where the states themselves need not: against
    the loop over all of time, in float64 too."""
    generator = torch.Generator().manual_seed(0)
    N = 32 * len(u) if T < 10_000 else 64
    a = (torch.randn(1, T, N, generator=generator) * scale + shift).to(dtype)
    grad_h = torch.randn(1, T, N, generator=generator).to(dtype)
    u, options = torch.tensor(u, dtype=dtype).repeat(N // len(u)), {"nonlinearity": nonlinearity}
    for grad_clip in (None, 1.0):
        one = _scan_and_gradients(a, u, None, grad_h, 1, grad_clip, **options)
        exact = reference.scan(a.double(), u.double(), **options)
        double = a.double(), u.double(), None, grad_h.double()
        exact = (
            *exact,
            *_scan_and_gradients(*double, 1, grad_clip, h=one[0].double(), **options)[2:],
        )
        for chunks in (2, 5):
            cut = _scan_and_gradients(a, u, None, grad_h, chunks, grad_clip, h=one[0], **options)
            for x, y, z in zip(cut, one, exact, strict=True):
                assert _same_kind(x, y)
                assert_close_to_reference(*_finite_everywhere(x, z, y), dtype=dtype)


def test_an_infinite_state_with_any_number_of_threads():
    a = torch.randn(1, 4096, 128, generator=torch.Generator().manual_seed(0))
    a[0, 100, 5] = torch.inf
    u, threads = torch.linspace(-0.99, 0.99, 128), torch.get_num_threads()
    u[5] = 0.5
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            h = torch.empty_like(a)
            h_n = cpu.scan_forward(a, u, None, h)
            assert h_n[0, 5] == torch.inf
            assert (h[0, 100:, 5] == torch.inf).all()
            assert h[0, :, :5].isfinite().all()
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=150, deadline=None)
@given(
    cases(T=160, N=20).filter(lambda case: case.nonlinearity != "tanh"),
    st.integers(2, 9),
    st.sampled_from([0.0, 0.003, 0.03]),
    st.booleans(),
)
def test_chunks_never_decide_what_is_finite(case, chunks, share, silent):
    """u up to 6 in size or 0, infinities and NaN strewn in a, g and h0, a silent beginning."""
    (a, u, h0, options), (grad_h, _) = inputs(case)
    generator = torch.Generator().manual_seed(case.seed)
    u = u * torch.tensor([0.0, 1.0, 1.0, 3.0, 5.4])[
        torch.randint(5, u.shape, generator=generator)
    ].to(u.dtype)
    for x in (a, grad_h) if h0 is None else (a, grad_h, h0):
        strange = torch.tensor([-torch.inf, -torch.inf, torch.inf, torch.nan])
        strange = strange[torch.randint(4, x.shape, generator=generator)].to(x.dtype)
        chosen = torch.rand(x.shape, generator=generator) < share
        x.copy_(torch.where(chosen, strange, x))
    if silent and a.dim() == 3:
        a[:, : int(0.8 * a.shape[1])] = 0
        grad_h[:, int(0.2 * a.shape[1]) :] = 0
    arguments = {"grad_clip": case.grad_clip, **options}
    one = _scan_and_gradients(a, u, h0, grad_h, 1, **arguments)
    cut = _scan_and_gradients(a, u, h0, grad_h, chunks, h=one[0], **arguments)
    for x, y in zip(cut, one, strict=True):
        assert _same_kind(x, y)
        x, y = _finite_everywhere(x, y)
        largest = y.double().abs().max().item() if y.numel() else 0
        torch.testing.assert_close(
            x, y, rtol=4 * FLOOR[case.dtype], atol=FLOOR[case.dtype] * largest
        )


def test_a_silent_beginning_in_chunks():
    """The state 0, where u has grown beyond all numbers before the input begins."""
    u = torch.tensor([1.3, -1.3, 2.0, -6.0, 0.5])
    for nonlinearity in ("relu", "hardtanh", "relu6", "identity"):
        a = torch.zeros(1, 3000, 5)
        a[:, 2980:] = 0.1
        h, options = torch.empty_like(a), {"nonlinearity": nonlinearity}
        for chunks in (2, 3, 5):
            cpu.scan_forward(a, u, None, h, **options, chunks=chunks)
            torch.testing.assert_close(h, reference.scan(a, u, **options)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_16_bits_are_read_and_rounded_as_torch_does(dtype):
    """Every number that is read; and what is written of numbers of every size, ties among them."""
    a = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, 1, -1)
    h, u = torch.empty_like(a), torch.zeros(a.shape[-1])
    cpu.scan_forward(a, u, None, h, nonlinearity="identity")
    tiny = torch.finfo(torch.float32).tiny
    expected = torch.where(a.float().abs() < tiny, 0, a)
    assert torch.equal(h.isnan(), expected.isnan())
    assert torch.equal(h.nan_to_num(0), expected.nan_to_num(0))

    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1, 200_000), generator=generator)
    numbers = [bits.to(torch.int32).view(torch.float32)]
    halfway = a[0].float().view(torch.int32) + (1 << (15 if dtype == torch.bfloat16 else 12))
    numbers += [(halfway + i).view(torch.float32) for i in (-1, 0, 1)]
    numbers += [torch.randn(1, 200_000, generator=generator) * scale for scale in (1e-5, 1, 3e4)]
    h0 = torch.cat(numbers, 1)
    a = torch.zeros(1, 1, h0.shape[1], dtype=dtype)
    h = torch.empty_like(a)
    cpu.scan_forward(a, torch.ones(h0.shape[1]), h0, h, nonlinearity="identity")
    expected = torch.where(h0.abs() < tiny, 0, h0).to(dtype)
    assert torch.equal(h[0].isnan(), expected.isnan())
    assert torch.equal(h[0].nan_to_num(0), expected.nan_to_num(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_makes_no_float32_copies(dtype):
    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor) and x.numel() >= a.numel():
                    assert x.dtype == dtype
            return result

    a, u, h0 = torch.randn(2, 50, 8).to(dtype), torch.rand(8).to(dtype), torch.rand(2, 8).to(dtype)
    weight, bias = torch.randn(8, 8).to(dtype), torch.randn(8).to(dtype)
    h = torch.empty_like(a)
    with Recorder():
        cpu.scan_forward(a, u, h0, h)
        cpu.scan_backward(a, h0, h, u, h0)
        cpu.indrnn_forward(a, weight, bias, u, h0, h)
        cpu.projected_backward(a, weight, h0, h, u, h0)


def test_a_state_on_the_threshold_of_a_growing_map():
    """1 = 2 * 1 - 1 for ever, while the least deviation would grow beyond all numbers."""
    a, u, h0 = torch.full((1, 400, 3), -1.0), torch.full((3,), 2.0), torch.ones(1, 3)
    for nonlinearity in ("relu", "identity"):
        for chunks in (1, 2, 5):
            h = torch.empty_like(a)
            cpu.scan_forward(a, u, h0, h, nonlinearity=nonlinearity, chunks=chunks)
            assert (h == 1).all()


def test_a_state_on_the_threshold_of_a_map_that_grows_less():
    """16 = 1.375 * 16 - 6; of 120 steps P is -6.3e17, and P + Q * 16 is rounding alone."""
    a, u, h0 = torch.full((1, 300, 8), -6.0), torch.full((8,), 1.375), torch.full((1, 8), 16.0)
    for chunks in (1, 2, 3, 5):
        h = torch.empty_like(a)
        cpu.scan_forward(a, u, h0, h, chunks=chunks)
        assert (h == 16).all(), chunks


def test_a_state_on_a_threshold_whose_terms_cancel():
    """p, then -u * p, leave a state of 0 or nearly so; it is compared with p, not with itself."""
    u = torch.linspace(1.5, 2.5, 40)
    a = torch.zeros(1, 400, 40)
    p = torch.linspace(0.3, 0.4, 40)
    a[0, 201], a[0, 202] = p, -u * p
    whole, h = torch.empty_like(a), torch.empty_like(a)
    cpu.scan_forward(a, u, None, whole, nonlinearity="hardtanh", chunks=1)
    cpu.scan_forward(a, u, None, h, nonlinearity="hardtanh", chunks=3)
    assert torch.equal(h, whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wider_initial_state_is_not_rounded(dtype):
    """Under autocast h0 stays float32, as u does."""
    a, u, h0 = torch.ones(1, 1, 4, dtype=dtype), torch.rand(4), torch.full((1, 4), 1.003)
    h = torch.empty_like(a)
    cpu.scan_forward(a, u, h0, h)
    _, grad_u, _, _ = cpu.scan_backward(torch.ones_like(h), None, h, u, h0)
    torch.testing.assert_close(grad_u, h0[0])
