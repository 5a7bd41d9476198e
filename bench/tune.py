"""Check the GPU kernels' launch model: time what it picks for each size beside other choices.

For each size and dtype, the choices near the model's pick are checked against the pick's own result
and timed beside it. A pick that takes over 1.1 times as long as the best is BEHIND. The library
itself never searches: what falls behind is a reason to mend kernels/model.py.
"""

import itertools
import multiprocessing
import os
import sys
import time
from concurrent import futures
from functools import partial
from pathlib import Path

import torch

from bench import arguments
from bench.choices import OPERATIONS, label
from bench.environment import describe, write_json
from bench.speed.cases import DTYPES, SIZES
from bench.speed.timing import ratio, times

BEHIND = 1.1
# How far from the pick's a result may be, of the largest value: another cut rounds differently.
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-3}


def sweep(cases, device, measure, seconds=float("inf")):
    """Yields a record for each case (operation, sizes, dtype). After `seconds` none is begun.

    measure: from {name: function} to {name: seconds in each round}.
    """
    deadline = time.monotonic() + seconds
    for name, sizes, dtype in cases:
        about = {"operation": name, "sizes": dict(zip("BTN", sizes, strict=True)), "dtype": dtype}
        reached = time.monotonic() < deadline
        result = examine(OPERATIONS[name], sizes, dtype, device, measure) if reached else {}
        yield about | {"reached": reached} | result


def examine(operation, sizes, dtype, device, measure):
    """Checks and times the pick and the other choices of one case."""
    arguments = *sizes, DTYPES[dtype], device
    pick, others = operation.choices(*arguments)
    compute = operation.prepare(*arguments)
    expected = [x.clone() for x in compute(pick)]
    errors = [disagreement(compute, choice, expected, TOLERANCE[dtype]) for choice in others]
    right = [pick, *(choice for choice, error in zip(others, errors, strict=True) if not error)]
    samples = measure({label(choice): partial(compute, choice) for choice in right})
    results = [
        {
            "choice": choice,
            "ms": times(samples[label(choice)]).record(),
            "pick_over_this": ratio(samples[label(pick)], samples[label(choice)]).median,
        }
        for choice in right
    ]
    best = max(results, key=lambda result: result["pick_over_this"])
    return {
        "pick": pick,
        "best": best["choice"],
        "pick_over_best": best["pick_over_this"],
        "results": results,
        "errors": [
            {"choice": choice, "error": error}
            for choice, error in zip(others, errors, strict=True)
            if error
        ],
    }


def disagreement(compute, choice, expected, tolerance):
    """What is wrong with a choice, or None."""
    from triton.runtime.errors import OutOfResources

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
    T = choice.get("chunks", 1) * choice.get("rows", 16)
    OPERATIONS[name].prepare(1, T, N, DTYPES[dtype], torch.device(device))(choice)


def measure_on_gpu(functions, rounds):
    """{name: seconds in each round} by the GPU's own clock, in turn, with a cold cache.

    Before each call a gigabyte is overwritten: that empties the cache, and takes so long that the
    host has queued the whole call before the GPU comes to it: what launching costs does not count.
    """
    eraser = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    names = list(functions)
    events = {name: [] for name in names}
    for number in range(-1, rounds):  # the first round warms up
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            eraser.zero_()
            begin.record()
            functions[name]()
            end.record()
            if number >= 0:
                events[name].append((begin, end))
        torch.cuda.synchronize()
    return {name: [b.elapsed_time(e) / 1e3 for b, e in pairs] for name, pairs in events.items()}


def line(record):
    """A record as it is printed."""
    sizes = ", ".join(map(str, record["sizes"].values()))
    text = f"{record['operation']:<15}{sizes:<18}{record['dtype']:<10}"
    if not record["reached"]:
        return text + "not reached"
    pick, best = label(record["pick"]), label(record["best"])
    medians = {label(result["choice"]): result["ms"]["median"] for result in record["results"]}
    text += f"{pick:<36}{medians[pick]:>9.4f}"
    if record["pick_over_best"] > BEHIND:
        text += f"  BEHIND {record['pick_over_best']:.2f}x: {best} takes {medians[best]:.4f}"
    for wrong in record["errors"]:
        text += f"\n    {label(wrong['choice'])}: {wrong['error']}"
    return text


def summary(records):
    """The closing lines, and the exit status: 1 where a choice is wrong."""
    reached = [record for record in records if record["reached"]]
    behind = sum(record["pick_over_best"] > BEHIND for record in reached)
    errors = [wrong["error"] for record in reached for wrong in record["errors"]]
    wrong = sum(error.startswith("WRONG") for error in errors)
    text = f"{behind} of {len(reached)} picks are BEHIND; {wrong} choices are wrong"
    if len(reached) < len(records):
        text += f"\n{len(records) - len(reached)} cases were not reached: --seconds sets the time"
    return text, 1 if wrong else 0


def add_arguments(parser):
    parser.add_argument("--device", type=arguments.device, help="default: cuda")
    parser.add_argument(
        "--seconds",
        type=arguments.positive,
        default=120.0,
        help="begin no further case after this long (default: 120)",
    )
    parser.add_argument(
        "--rounds", type=arguments.integer(1), default=20, help="samples per choice (default: 20)"
    )
    parser.add_argument(
        "--sizes",
        type=arguments.sizes,
        nargs="+",
        default=SIZES,
        metavar="BxTxN",
        help="sizes to sweep (default: those of the speed measurements)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write (default: none)")


def run(args):
    if args.device is None and not torch.cuda.is_available():
        raise arguments.UserError("tuning needs a GPU, and PyTorch finds none")
    device = torch.device(args.device or "cuda")
    if device.type != "cuda":
        raise arguments.UserError(f"tuning needs a GPU, which {device} is not")
    if args.out and not args.out.parent.is_dir():
        raise arguments.UserError(f"there is no folder {args.out.parent} for {args.out.name}")
    began = time.monotonic()
    torch.cuda.set_device(device.index or 0)
    torch.manual_seed(0)
    environment, properties = describe(device), torch.cuda.get_device_properties(device)
    everything = itertools.product(("bfloat16", "float32"), args.sizes, OPERATIONS)
    cases = [(name, sizes, dtype) for dtype, sizes, name in everything]
    print(f"{environment['device_name']}, {properties.multi_processor_count} multiprocessors")
    compiled, wanted = compile_ahead(cases, device, args.seconds / 2)
    print(f"{compiled} of {wanted} choices compiled in {time.monotonic() - began:.0f} s")
    print(f"ms: median of {args.rounds} rounds, cold cache\n")
    records = []
    left = args.seconds - (time.monotonic() - began)
    for record in sweep(cases, device, partial(measure_on_gpu, rounds=args.rounds), left):
        records.append(record)
        print(line(record), flush=True)
    text, status = summary(records)
    print(f"\n{text}")
    if args.out:
        content = {"benchmark": "tune", "rounds": args.rounds, "environment": environment}
        content["multiprocessors"] = properties.multi_processor_count
        content["cache_bytes"] = properties.L2_cache_size
        write_json(args.out, content | {"behind": BEHIND, "records": records})
        print(f"written: {args.out}")
    return status


if __name__ == "__main__":
    from bench import __main__, tune

    __main__.COMMANDS["tune"] = tune
    sys.exit(__main__.main(["tune", *sys.argv[1:]]))
