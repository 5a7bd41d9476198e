"""Measure IndRNN layers and the recurrence alone beside what a user would pick instead.

Beside us: nn.Linear, PyTorch's recurrent networks, a loop over time, a copy and a relu of the same
tensors, on a GPU the published kernel's design, and what is installed of other packages. What is
ours is checked against the reference in float64 before it is timed. What raises is a row with its
message, and the run goes on. The JSON is written after each case.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from bench import arguments
from bench.environment import describe, write_atomically
from bench.speed import cases, report
from bench.speed.candidates import OURS
from bench.speed.measure import LEAST_ROUNDS, Clock, Limits, measure, measure_calls, measure_threads

SECONDS = {"cpu": 1.0, "cuda": 0.3}  # of a case, for all of its rounds


def add_arguments(parser):
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.add_argument(
        "--device", type=arguments.device, help="default: cuda if there is one, else cpu"
    )
    parser.add_argument(
        "--rounds",
        type=arguments.integer(LEAST_ROUNDS),
        default=20,
        help=f"samples at most, {LEAST_ROUNDS} at least (default: 20)",
    )
    parser.add_argument(
        "--sizes", type=arguments.sizes, nargs="+", metavar="BxTxN", help="these shapes alone"
    )
    parser.add_argument(
        "--dtypes", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES), help="both"
    )
    parser.add_argument(
        "--limit",
        type=arguments.positive,
        default=1.5,
        metavar="SECONDS",
        help="skip a layer of others that takes longer for a call (default: 1.5)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON; default: runs/speed-...")


def run(args):
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = args.out
    if out is None:
        out = Path("runs") / f"speed-{device.type}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        out.parent.mkdir(exist_ok=True)
    if not out.parent.is_dir():
        raise arguments.UserError(f"there is no folder {out.parent} for {out.name}")
    torch.backends.cudnn.allow_tf32 = False  # products in float32 are that for everybody
    limits = Limits(args.rounds, SECONDS.get(device.type, SECONDS["cuda"]), args.limit)
    content = {
        "benchmark": "speed",
        "format": report.FORMAT,
        "complete": False,
        "limit": args.limit,
        "environment": describe(device),
        "rows": [],
    }
    introduce(content["environment"])
    try:
        for rows in everything(args, device, limits):
            content["rows"] += rows
            write(out, content)
            print("\n".join(report.lines(rows)))
        content["complete"] = True
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    write(out, content)
    print(f"\nwritten: {out}")
    failed = [r for r in content["rows"] if "wrong" in r or (r["name"] in OURS and "error" in r)]
    for row in failed:
        print(f"{row['dtype']}, {row['what']}: {row['name']}: {report.word(row)}", file=sys.stderr)
    return 130 if not content["complete"] else 1 if failed else 0


def introduce(environment):
    print(f"{environment['device_name']}; torch {environment['versions']['torch']}")
    if (environment["load_average"] or 0) > 0.5 and environment["device"] == "cpu":
        print(f"load average {environment['load_average']:.1f}: figures of a busy machine are void")
    print("median of the rounds [quartiles]; times as long as the first, within each round")


def everything(args, device, limits):
    """Yields the rows of each case."""
    clock = Clock(device)
    for group in cases.cases(args.sizes, args.dtypes):
        yield from measure(group, device, clock, limits)
    if not args.sizes:
        yield from measure_calls(device, limits.rounds)
        if device.type == "cpu":
            yield from measure_threads(limits.rounds)


def write(path, content):
    """One line for each row."""
    rows = ",\n".join(f"  {json.dumps(row, allow_nan=False)}" for row in content["rows"])
    head = json.dumps(content | {"rows": []}, indent=1, allow_nan=False)
    text = head.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))
