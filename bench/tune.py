"""Check the GPU kernels' launch model: time what it picks for each size beside other choices.

For each size and dtype, the choices near the model's pick are checked against the pick's own result
and timed beside it. A pick that takes over 1.1 times as long as the best is BEHIND. The library
itself never searches: what falls behind is a reason to mend kernels/gpu/model.py.
"""

import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from fastindrnn.kernels.gpu import model
from fastindrnn.kernels.gpu.devices import device_of
from triton.runtime.errors import OutOfResources

from bench import arguments
from bench.environment import describe, write_json
from bench.speed.cases import DTYPES, SIZES
from bench.speed.measure import Clock, interleave
from fastindrnn.kernels import gpu

BEHIND = 1.1
# How far from the pick's a result may be, of the largest value: another cut rounds differently.
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-3}


class Operation(NamedTuple):
    """Something that a launch does in several ways. A choice is a named tuple of `model`.

    choices(B, T, N, dtype, device): the model's pick, and a list of others.
    prepare(B, T, N, dtype, device): makes tensors, and returns a function of a choice that
    computes on them and returns all that it computed.
    """

    choices: Callable
    prepare: Callable


def near(choice, **factors):
    """Copies in which one field is some times as large."""
    return [
        choice._replace(**{name: int(getattr(choice, name) * factor)})
        for name, several in factors.items()
        for factor in several
    ]


def scan_choices(B, T, N, dtype, device, streams):
    """What differs from the pick by a factor in one thing, or has one chunk."""
    machine = device_of(torch.empty(0, device=device))
    pick = model.plan(machine, B, T, N, dtype.itemsize, streams, math.gcd(16, N * dtype.itemsize))
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
    return pick, possible


def scan_forward(B, T, N, dtype, device):
    a, u = torch.randn(B, T, N, device=device, dtype=dtype), torch.rand(N, device=device)
    h = torch.empty_like(a)
    return lambda choice: (gpu.scan_forward(a, u, None, h, **choice._asdict()), h)


def scan_backward(B, T, N, dtype, device):
    grad_h, a = (torch.randn(B, T, N, device=device, dtype=dtype) for _ in range(2))
    u, h = torch.rand(N, device=device), torch.relu(a)
    return lambda choice: gpu.scan_backward(grad_h, None, h, u, None, **choice._asdict())


def layer_choices(B, T, N, dtype, device):
    """Split into other numbers of slices; fused in other tiles, each chained and not."""
    machine, aligned = device_of(torch.empty(0, device=device)), N * dtype.itemsize % 16 == 0
    plain = dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    strategy = "split" if plain or machine.family is None else "auto"
    pick = model.choose(machine, strategy, B, T, N, N, dtype.itemsize, False, aligned, True, B)
    slices = {1, *(min(int(n * pick.slices), B) for n in (0.5, 2, 4))} - {0}
    others = [model.Choice(None, False, n) for n in sorted(slices)]
    if machine.family is not None:
        tile = model.pick_tile(machine.family, N, N, dtype.itemsize, False, aligned)
        halves = dict.fromkeys(("block_n", "block_t", "warps"), (0.5, 2))
        for each in [tile, *([] if plain else near(tile, **halves))]:
            others += [model.Choice(each, chained, 1) for chained in {False, each.block_t < T}]
    return pick, others


def layer_forward(B, T, N, dtype, device):
    x, h = (torch.randn(B, T, N, device=device, dtype=dtype) for _ in range(2))
    weight = torch.randn(N, N, device=device, dtype=dtype) / N**0.5
    bias, u = torch.randn(N, device=device, dtype=dtype), torch.rand(N, device=device)
    return lambda choice: (gpu.indrnn_forward(x, weight, bias, u, None, h, choice=choice), h)


OPERATIONS = {
    "scan forward": Operation(partial(scan_choices, streams=1), scan_forward),
    "scan backward": Operation(partial(scan_choices, streams=2), scan_backward),
    "layer forward": Operation(layer_choices, layer_forward),
}


def label(choice):
    fields = choice._asdict()
    tile = fields.pop("tile", None)
    fields |= tile._asdict() if tile is not None else {}
    return ", ".join(f"{name} {value}" for name, value in fields.items())


def sweep(cases, device, measure, seconds=float("inf")):
    """Yields a record for each case (operation, sizes, dtype). After `seconds` none is begun.

    measure: from {name: function} to {name: seconds in each round}.
    """
    deadline = time.monotonic() + seconds
    for name, sizes, dtype in cases:
        about = {"operation": name, "sizes": list(sizes), "dtype": dtype}
        reached = time.monotonic() < deadline
        result = examine(OPERATIONS[name], sizes, dtype, device, measure) if reached else {}
        yield about | {"reached": reached} | result


def examine(operation, sizes, dtype, device, measure):
    """Checks and times the pick and the other choices of one case."""
    arguments = *sizes, DTYPES[dtype], device
    pick, others = operation.choices(*arguments)
    others = [choice for choice in dict.fromkeys(others) if choice != pick]
    compute = operation.prepare(*arguments)
    expected = [x.clone() for x in compute(pick)]
    errors = {label(c): disagreement(compute, c, expected, TOLERANCE[dtype]) for c in others}
    right = [pick, *(choice for choice in others if errors[label(choice)] is None)]
    ms = {
        name: [1e3 * seconds for seconds in found]
        for name, found in measure({label(c): partial(compute, c) for c in right}).items()
    }
    over = {
        name: statistics.median(a / b for a, b in zip(ms[label(pick)], own, strict=True))
        for name, own in ms.items()
    }
    best = max(over, key=over.get)
    return {
        "pick": label(pick),
        "best": best,
        "pick_over_best": over[best],
        "ms": ms,
        "errors": {name: error for name, error in errors.items() if error is not None},
    }


def disagreement(compute, choice, expected, tolerance):
    """What is wrong with a choice, or None."""
    try:
        actual = compute(choice)
    except OutOfResources as error:
        return str(error)
    for x, y in zip(actual, expected, strict=True):
        error, allowed = (x - y).abs().max().item(), tolerance * y.abs().max().item()
        if not error <= allowed:
            return f"WRONG: off by {error:.2e}, allowed {allowed:.2e}"
    return None


def compile_ahead(cases, device, seconds):
    """Compiles what the cases need, in all processors' worth of processes, into Triton's cache.

    A kernel depends on N and the dtype, but not on B and T: these are as small as may be. What
    fails here is compiled, or fails, when its turn comes.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(min(os.cpu_count() or 1, 16), mp_context=spawn)
    jobs = {}
    for name, (B, T, N), dtype in cases:
        pick, others = OPERATIONS[name].choices(B, T, N, DTYPES[dtype], device)
        for choice in (pick, *others):
            arguments = name, N, dtype, str(device), choice
            jobs[str(arguments)] = arguments
    waiting = [pool.submit(compile_one, *arguments) for arguments in jobs.values()]
    done, _ = futures.wait(waiting, timeout=seconds)
    pool.shutdown(cancel_futures=True)
    return sum(not job.exception() for job in done), len(waiting)


def compile_one(name, N, dtype, device, choice):
    T = choice.chunks * choice.rows if isinstance(choice, model.Plan) else 16
    OPERATIONS[name].prepare(1, T, N, DTYPES[dtype], torch.device(device))(choice)


def measure(functions, rounds, clock):
    """{name: seconds in each round}, after a round that warms up; raises what a function raises."""
    results = interleave(functions, rounds + 1, clock)
    for found in results.values():
        if isinstance(found, Exception):
            raise found
    return {name: found[1:] for name, found in results.items()}


def line(record):
    """A record as it is printed."""
    sizes = ", ".join(map(str, record["sizes"]))
    text = f"{record['operation']:<15}{sizes:<18}{record['dtype']:<10}"
    if not record["reached"]:
        return text + "not reached"
    medians = {name: statistics.median(own) for name, own in record["ms"].items()}
    text += f"{record['pick']:<36}{medians[record['pick']]:>9.4f}"
    if record["pick_over_best"] > BEHIND:
        best, ratio = record["best"], record["pick_over_best"]
        text += f"  BEHIND {ratio:.2f}x: {best} takes {medians[best]:.4f}"
    return "\n    ".join([text, *map(": ".join, record["errors"].items())])


def summary(records):
    """The closing lines, and the exit status: 1 where a choice is wrong."""
    reached = [record for record in records if record["reached"]]
    behind = sum(record["pick_over_best"] > BEHIND for record in reached)
    errors = [error for record in reached for error in record["errors"].values()]
    wrong = sum(error.startswith("WRONG") for error in errors)
    text = f"{behind} of {len(reached)} picks are BEHIND; {wrong} choices are wrong"
    if len(reached) < len(records):
        text += f"\n{len(records) - len(reached)} cases were not reached: --seconds sets the time"
    return text, 1 if wrong else 0


def add_arguments(parser):
    def add(name, **options):
        parser.add_argument(f"--{name}", **options)

    end = "begin no further case after this long (default: 120)"
    add("device", type=arguments.device, default="cuda", help="default: cuda")
    add("seconds", type=arguments.positive, default=120.0, help=end)
    add("rounds", type=arguments.integer(1), default=20, help="samples per choice (default: 20)")
    sizes = "sizes to sweep (default: those of the speed measurements)"
    add("sizes", type=arguments.sizes, nargs="+", default=SIZES, metavar="BxTxN", help=sizes)
    add("out", type=Path, metavar="FILE", help="JSON to write (default: none)")


def run(args):
    device = torch.device(args.device)
    if device.type != "cuda":
        raise arguments.UserError(f"tuning needs a GPU, which {device} is not")
    if args.out and not args.out.parent.is_dir():
        raise arguments.UserError(f"there is no folder {args.out.parent} for {args.out.name}")
    began = time.monotonic()
    torch.cuda.set_device(device.index or 0)
    torch.manual_seed(0)
    environment, everything = describe(device), itertools.product(DTYPES, args.sizes, OPERATIONS)
    cases = [(name, sizes, dtype) for dtype, sizes, name in everything]
    compiled, wanted = compile_ahead(cases, device, args.seconds / 2)
    print(f"{environment['device_name']}: {compiled} of {wanted} choices compiled")
    print(f"ms: median of {args.rounds} rounds, cold cache\n")
    records, clock = [], Clock(device)
    left = args.seconds - (time.monotonic() - began)
    for record in sweep(cases, device, partial(measure, rounds=args.rounds, clock=clock), left):
        records.append(record)
        print(line(record), flush=True)
    text, status = summary(records)
    print(f"\n{text}")
    if args.out:
        content = {"benchmark": "tune", "environment": environment, "behind": BEHIND}
        write_json(args.out, content | {"records": records})
        print(f"written: {args.out}")
    return status
