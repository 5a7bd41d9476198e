"""Check the GPU kernels' launch model: time what it picks for each size beside other choices.

For each size and dtype, the choices near the model's pick are checked against the pick's own result
and timed beside it. A pick that takes over 1.1 times as long as another choice is BEHIND. The
library itself never searches: what falls behind is a reason to mend kernels/gpu/model.py.
"""

import itertools
import math
import multiprocessing
import os
import time
from concurrent import futures
from functools import partial
from pathlib import Path

import torch
from fastindrnn.kernels.gpu import devices, model
from fastindrnn.kernels.gpu.tensors import ScanOptions
from fastindrnn.kernels.gpu.ways import choice_of
from triton.runtime.errors import OutOfResources

from bench import arguments
from bench.environment import describe, write_json
from bench.speed.cases import DTYPES, SIZES, Case
from bench.speed.checks import Wrong
from bench.speed.measure import LEAST_ROUNDS, Clock, interleave, rows_of
from bench.speed.rows import by_case, lines, ratio
from fastindrnn.kernels import gpu

BEHIND = 1.1
# How far from the pick's a result may be, of the largest value: another division rounds otherwise.
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-3}


# Of each operation, for these sizes: its choices, the model's pick first, and a function
# that computes in the way of a choice and returns all that it computed.


def scan_forward(B, T, N, dtype, device):
    a, u = torch.randn(B, T, N, device=device, dtype=dtype), torch.rand(N, device=device)
    h = torch.empty_like(a)
    compute = partial(gpu.scan_forward, a, u, None, h)
    return scan_choices(a, 1), lambda choice: (compute(**choice._asdict()), h)


def scan_backward(B, T, N, dtype, device):
    grad_h, a = (torch.randn(B, T, N, device=device, dtype=dtype) for _ in range(2))
    u, h = torch.rand(N, device=device), torch.relu(a)
    compute = partial(gpu.scan_backward, grad_h, None, h, u, None)
    return scan_choices(h, 2), lambda choice: compute(**choice._asdict())


def layer_forward(B, T, N, dtype, device):
    x, h = (torch.randn(B, T, N, device=device, dtype=dtype) for _ in range(2))
    weight = torch.randn(N, N, device=device, dtype=dtype) / N**0.5
    bias, u = torch.randn(N, device=device, dtype=dtype), torch.rand(N, device=device)
    compute = partial(gpu.indrnn_forward, x, weight, bias, u, None, h)
    return layer_choices(x, weight), lambda choice: (compute(choice=choice), h)


OPERATIONS = {
    "scan forward": scan_forward,
    "scan backward": scan_backward,
    "layer forward": layer_forward,
}


def scan_choices(x, tensors_read):
    """What differs from the pick by a factor in one field, or has one chunk, or one stage."""
    (B, T, N), size, machine = x.shape, x.element_size(), devices.device_of(x)
    pick = model.plan(machine, B, T, N, size, tensors_read, math.gcd(16, N * size))
    halves = dict.fromkeys(("rows", "stages", "block_n"), (0.5, 2))
    others = near(pick, chunks=(0.25, 0.5, 2, 4), **halves)
    others += [pick._replace(chunks=1), pick._replace(stages=1)]
    possible = [
        choice
        for choice in others
        if min(choice) >= 1
        and choice.rows <= 32
        and choice.block_n >= machine.lanes
        and choice.chunks * choice.rows <= T
    ]
    return list(dict.fromkeys([pick, *possible]))


def layer_choices(x, weight):
    """Split into other numbers of slices; fused in other tiles, each chained and not."""
    (B, T, N), size, family = x.shape, x.element_size(), devices.device_of(x).family
    pick = choice_of("auto", x, weight, x, ScanOptions())
    slices = {1, *(int(factor * pick.slices) for factor in (0.5, 2, 4))}
    choices = [pick, *(model.Choice(None, False, n) for n in sorted(slices) if 1 <= n <= B)]
    if family is not None:
        tile = model.pick_tile(family, N, N, size, backward=False, aligned=N * size % 16 == 0)
        tiles = [tile]
        if x.dtype != torch.float32 or devices.allows_tf32():  # else all of them are slow
            tiles += near(tile, **dict.fromkeys(("block_n", "block_t", "warps"), (0.5, 2)))
        choices += [
            model.Choice(tile, chained, 1)
            for tile in tiles
            for chained in {False, tile.block_t < T}
        ]
    return list(dict.fromkeys(choices))


def near(choice, **factors):
    """Copies in which one field is some times as large."""
    return [
        choice._replace(**{name: int(getattr(choice, name) * factor)})
        for name, several in factors.items()
        for factor in several
    ]


def examine(case, device, clock):
    """Rows of the pick, which comes first, and of the other choices; what is wrong is not timed."""
    (pick, *others), compute = OPERATIONS[case.what](*case.sizes, DTYPES[case.dtype], device)
    expected = [x.clone() for x in compute(pick)]
    functions, failed = {str(pick): partial(compute, pick)}, {}
    for choice in others:
        try:
            agree(compute(choice), expected, TOLERANCE[case.dtype])
            functions[str(choice)] = partial(compute, choice)
        except (Wrong, OutOfResources) as error:
            failed[str(choice)] = error
    return rows_of(case, interleave(functions, LEAST_ROUNDS, clock) | failed)


def agree(actual, expected, tolerance):
    for x, y in zip(actual, expected, strict=True):
        error, allowed = (x - y).abs().max().item(), tolerance * y.abs().max().item()
        if not error <= allowed:
            raise Wrong(f"off by {error:.2e}, allowed {allowed:.2e}")


def behind(rows):
    """A line that says how far the pick of a case is BEHIND its best choice; None if it is not."""
    ((case, found),) = by_case(rows).items()
    pick = rows[0]["name"]
    times = {name: ratio(found, pick, name) for name, row in found.items() if "ms" in row}
    best = max(times, key=times.get)
    return f"BEHIND {times[best]:.2f}x: {case}: {best}" if times[best] > BEHIND else None


def compile_ahead(cases, device, seconds):
    """Compiles what the cases need, in many processes, into Triton's cache. What fails here is
    compiled, or fails, when its turn comes."""
    jobs = dict.fromkeys(
        (operation, sizes[-1], dtype, device, choice)
        for sizes, dtype, operation in cases
        for choice in OPERATIONS[operation](*sizes, DTYPES[dtype], device)[0]
    )
    spawn = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(min(os.cpu_count() or 1, 16), mp_context=spawn)
    futures.wait([pool.submit(compile_one, *job) for job in jobs], timeout=seconds)
    pool.shutdown(cancel_futures=True)


def compile_one(operation, N, dtype, device, choice):
    """A kernel depends on N and the dtype, but not on B and T: these are as small as may be."""
    T = choice.chunks * choice.rows if isinstance(choice, model.Plan) else 16
    _, compute = OPERATIONS[operation](1, T, N, DTYPES[dtype], device)
    compute(choice)


def add_arguments(parser):
    end = "begin no further case after this long (default: 120)"
    parser.add_argument("--device", type=arguments.device, default="cuda", help="default: cuda")
    parser.add_argument("--seconds", type=arguments.positive, default=120.0, help=end)
    sizes = {"type": arguments.sizes, "nargs": "+", "default": SIZES, "metavar": "BxTxN"}
    parser.add_argument("--sizes", **sizes, help="default: those of the speed measurements")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write (default: none)")


def run(args):
    device, deadline = torch.device(args.device), time.monotonic() + args.seconds
    if device.type != "cuda":
        raise arguments.UserError(f"tuning needs a GPU, which {device} is not")
    if args.out and not args.out.parent.is_dir():
        raise arguments.UserError(f"there is no folder {args.out.parent} for {args.out.name}")
    torch.cuda.set_device(device.index or 0)
    torch.manual_seed(0)
    everything = itertools.product(DTYPES, args.sizes, OPERATIONS)
    cases = [Case(sizes, dtype, operation) for dtype, sizes, operation in everything]
    compile_ahead(cases, device, args.seconds / 2)
    return sweep(cases, device, Clock(device), deadline, args.out)


def sweep(cases, device, clock, deadline, out=None):
    """Returns the exit status: 1 where a choice is wrong."""
    environment, found = describe(device), []
    print(f"{environment['device_name']}; median [quartiles]; times as long as the pick")
    while len(found) < len(cases) and time.monotonic() < deadline:
        found.append(examine(cases[len(found)], device, clock))
        print("\n".join(lines(found[-1])))
    late = list(filter(None, map(behind, found)))
    wrong = sum(row.get("error", "").startswith("Wrong") for rows in found for row in rows)
    print("", *late, sep="\n")
    print(f"{len(late)} of {len(found)} picks are BEHIND; {wrong} choices are wrong")
    if len(found) < len(cases):
        print(f"{len(cases) - len(found)} cases were not reached: --seconds sets the time")
    if out:
        rows = list(itertools.chain(*found))
        write_json(out, {"benchmark": "tune", "environment": environment, "rows": rows})
        print(f"written: {out}")
    return 1 if wrong else 0
