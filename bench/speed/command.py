"""Measure IndRNN layers and the bare recurrence against what a user would pick instead.

Beside us: nn.Linear, a copy of the same bytes, PyTorch's recurrent networks, a loop over time, that
loop under torch.compile, on a GPU the published kernel's design, and what is installed of other
packages. Everything of ours is checked against the reference in float64 before it is timed. A
candidate that would take too long or too much memory is skipped, with a word. The JSON is written
after each size.
"""

import argparse
import copy
import gc
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bench import arguments
from bench.environment import describe, write_json
from bench.speed import claims, growth, host, report, text
from bench.speed.budget import BUDGETS, Skipped
from bench.speed.cases import DTYPES, QUICK_SIZES, SCAN_SIZES, SIZES, cases_of, sweeps
from bench.speed.checks import Wrong
from bench.speed.tables import Bench
from bench.speed.timing import Times

RESULTS = Path(__file__).parent.parent / "results"
PARTS = "cases", "calls", "threads", "growth"
QUICK_ROUNDS, SWEEP_ROUNDS = 3, 9


def add_arguments(parser):
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument(
        "--device", type=arguments.device, help="default: cuda if there is one, else cpu"
    )
    parser.add_argument(
        "--rounds", type=arguments.integer(1), default=30, help="samples at most (default: 30)"
    )
    parser.add_argument(
        "--sizes", type=arguments.sizes, nargs="+", metavar="BxTxN", help="these sizes instead"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: both"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, help="default: all; with --sizes, cases"
    )
    parser.add_argument(
        "--limit",
        type=arguments.positive,
        metavar="SECONDS",
        help="skip other people's layers that would take longer for a forward, or a quarter of it "
        "in stacks and training steps (default: 6 on a CPU, 2 on a GPU)",
    )
    parser.add_argument(
        "--precision",
        choices=("highest", "high"),
        default="highest",
        help="of products in float32: 'high' allows TF32 (default: highest)",
    )
    parser.add_argument("--quick", action="store_true", help="a few small sizes, 3 rounds: a try")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON to write (default: bench/results/speed-DEVICE.json; none with --sizes, --quick)",
    )
    parser.add_argument("--draw", action="store_true", help="then draw the plots of that JSON")


def run(args):
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = args.out
    if out is None and not (args.sizes or args.quick):
        out = RESULTS / f"speed-{device.type}.json"
    if out and not out.parent.is_dir():
        raise arguments.UserError(f"there is no folder {out.parent} for {out.name}")
    if args.draw and not out:
        raise arguments.UserError("--draw needs a JSON to draw: give --out FILE")
    bench = Bench(device, QUICK_ROUNDS if args.quick else args.rounds, limits(device, args.limit))
    content = begin(bench, args)
    introduce(content)
    try:
        for part in args.parts or (("cases",) if args.sizes else PARTS):
            for _ in STEPS[part](bench, args, content):
                save(out, content, device)
        content["complete"] = True
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    except Wrong as wrong:
        print(wrong, file=sys.stderr)
        return 1
    save(out, content, device)
    missed = conclude(content)
    if out:
        print(f"written: {out}")
    if args.draw:
        report.draw(out)
    return 130 if not content["complete"] else 1 if missed else 0


def limits(device, call):
    """The budget of a kind of device, with another limit for a call if it is given."""
    budget = BUDGETS.get(device.type, BUDGETS["cuda"])
    return replace(budget, call=call) if call else budget


def begin(bench, args):
    """The head of the JSON. Sets how products in float32 are computed, the same for everybody."""
    torch.set_float32_matmul_precision(args.precision)
    torch.backends.cudnn.allow_tf32 = args.precision == "high"
    return {
        "benchmark": "speed",
        "format": report.FORMAT,
        "complete": False,
        "rounds": bench.rounds,
        "seconds_a_call": bench.limits.call,
        "float32_products": args.precision,
        "environment": describe(bench.device),
        "copy_bytes_per_second": copy_bandwidth(bench.clock),
        "absent": {dtype: bench.absent(dtype) for dtype in args.dtypes},
        "records": [],
        "growth": [],
        "claims": [],
    }


def copy_bandwidth(clock):
    """Bytes read and written a second, by copies far larger than any cache."""
    source = torch.zeros(
        1 << (30 if clock.device.type == "cuda" else 28), device=clock.device, dtype=torch.uint8
    )
    target = torch.empty_like(source)
    seconds = [clock(lambda: target.copy_(source)) for _ in range(7)]
    return float(f"{2 * source.numel() / Times.of(seconds[2:]).median:.4g}")


def introduce(content):
    environment, copied = content["environment"], content["copy_bytes_per_second"] / 1e9
    print(f"{environment['device_name']}; torch {environment['versions']['torch']}; ", end="")
    print(f"float32 products: {content['float32_products']}; copies at {copied:.3g} GB/s")
    if (environment["load_average"] or 0) > 0.5 and environment["device"] == "cpu":
        print(f"load average {environment['load_average']:.1f}: figures of a busy machine are void")
    for dtype, absent in content["absent"].items():
        for name, word in absent.items():
            print(f"{dtype}: no {name}: {word}")
    print(
        f"medians of up to {content['rounds']} rounds [quartiles]; ratios are taken within rounds"
    )


def save(out, content, device):
    content["claims"] = claims.judge(device.type, content["records"])
    if out:
        write_json(out, content)


def measure_cases(bench, args, content):
    sizes = args.sizes or (QUICK_SIZES if args.quick else [*SCAN_SIZES, *SIZES])
    for each in sizes:
        depths = {"depths": ()} if each in SCAN_SIZES and not args.sizes else {}
        for dtype in args.dtypes:
            cases = cases_of(each, dtype, **depths)
            try:
                inputs = bench.draw(each, dtype)
            except Skipped as reason:
                print(f"\n{cases[0].title()}, and what follows: skipped, {reason}")
                continue
            for case in cases:
                content["records"].append(bench.measure(case, inputs))
                print(text.table(content["records"][-1]))
            del inputs
            gc.collect()
            if bench.device.type == "cuda":
                torch.cuda.empty_cache()
        yield


def measure_growth(bench, args, content):
    bench = copy.copy(bench)
    bench.rounds = min(SWEEP_ROUNDS, bench.rounds)
    for sweep in sweeps(bench.device.type, args.quick):
        if sweep.dtype in args.dtypes:
            content["growth"].append(growth.measure(bench, sweep))
            print(text.growth_table(content["growth"][-1]))
            yield


def measure_calls(bench, args, content):
    content["records"].append(host.call_cost(bench.device, bench.clock, bench.rounds))
    print(text.table(content["records"][-1]))
    yield


def measure_threads(bench, args, content):
    if bench.device.type != "cpu":
        return
    sizes = (1, 4096, 32) if args.quick else host.THREAD_SIZES
    record = host.thread_scaling(bench.clock, bench.rounds, sizes)
    if record is None:
        print("\nthread scaling: skipped, there is one core")
        return
    content["records"].append(record)
    print(text.table(record))
    yield


STEPS = dict(
    zip(PARTS, (measure_cases, measure_calls, measure_threads, measure_growth), strict=True)
)


def conclude(content):
    """Prints the verdicts; how many bounds were missed."""
    verdicts = content["claims"]
    if verdicts:
        print()
    for verdict in verdicts:
        print(text.verdict_line(verdict))
    held, missed, absent = (
        sum(verdict["holds"] is outcome for verdict in verdicts) for outcome in (True, False, None)
    )
    if verdicts:
        word = f", {absent} not measured" if absent else ""
        print(f"\n{held} of {len(verdicts)} bounds hold, {missed} missed{word}")
    return missed
