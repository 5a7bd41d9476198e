"""The threads of the CPU loops, which are those of torch's own OpenMP runtime."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from fastindrnn.kernels.cpu import openmp
from scan_cases import Case, inputs

from fastindrnn.kernels import cpu

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("chunks", [None, 4])
def test_same_bits_on_each_run_and_number_of_threads(chunks):
    (a, u, h0, options), (grad_h, grad_h_n) = inputs(Case(2, 300, 200, form="lengths"))
    options["chunks"] = chunks
    threads, results = torch.get_num_threads(), []
    try:
        for number in (threads, 1, 2, 3, 4, 2):
            torch.set_num_threads(number)
            h = torch.empty_like(a)
            h_n = cpu.scan_forward(a, u, h0, h, **options)
            gradients = cpu.scan_backward(grad_h, grad_h_n, h, u, h0, **options)
            results.append((h, h_n, *gradients))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


def test_number_of_threads_is_torchs():
    """With one thread nothing is started; with several, as many work as torch is set to."""
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
        thread.join(600)  # it could hang
        assert not thread.is_alive()
    assert not wrong


_CHILDREN = """
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
        return 2

    def __getitem__(self, i):
        return scan(i)

def child(queue, seed):
    queue.put(scan(seed).numpy())

def main():
    expected = [scan(i) for i in range(2)]  # the parent's threads exist by now
    if sys.argv[1] == "loader":
        loader = DataLoader(Scans(), 1, num_workers=2, multiprocessing_context="fork")
        results = [h[0] for h in loader]
    else:
        context = torch.multiprocessing.get_context(sys.argv[1])
        results = []
        for i in range(2):
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
    """In a DataLoader's worker, a forked and a spawned child, after the parent's threads ran."""
    if start != "spawn" and not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    script = tmp_path / "children.py"
    script.write_text(_CHILDREN)
    command = [sys.executable, str(script), start]
    subprocess.run(command, check=True, timeout=600)  # it could hang


@pytest.mark.parametrize("missing", ["torch", "OpenMP"])
def test_one_thread_where_torchs_runtime_is_not_found(missing, monkeypatch):
    class Library:
        def __init__(self, path):
            if missing == "torch":
                raise OSError(path)

    with monkeypatch.context() as patched:
        patched.setattr(openmp.ctypes, "CDLL", Library)
        runtime = openmp._Runtime()
    monkeypatch.setattr(openmp, "_runtime", runtime)
    assert openmp.thread_count(1 << 20) == 1
    assert openmp.threads().startswith("one thread")


def test_the_runtime_is_the_one_that_torch_loaded(monkeypatch):
    """It is not looked up in a folder of the wheel, since torch's libraries lie elsewhere too."""
    monkeypatch.setattr(torch, "__file__", "/nowhere/torch/__init__.py")
    assert openmp._Runtime().parallel is not None
