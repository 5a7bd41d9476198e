"""Measure IndRNN layers and the recurrence alone beside what a user would pick instead.

Beside us: nn.Linear, PyTorch's recurrent networks, a loop over time, a copy and a relu of the same
tensors, and what is installed of other packages. What is ours is checked against the formula in
float64 before it is timed. What raises is a row with its message, and the run goes on. The JSON is
written after each case.
"""

import sys
import time
from pathlib import Path

import torch

from bench import arguments
from bench.environment import describe, keep_freed_memory, write_json
from bench.speed import cases
from bench.speed.candidates import OURS, PACKAGES
from bench.speed.measure import LEAST_ROUNDS, Clock, measure
from bench.speed.rows import FORMAT, lines

SECONDS = 1.0  # of a case, for its rounds beyond the least; on a GPU a third of it


def add_arguments(parser):
    def add(name, **options):
        parser.add_argument(f"--{name}", **options)

    rounds = arguments.integer(LEAST_ROUNDS)
    add("device", type=arguments.device, help="default: cuda if there is one, else cpu")
    add("rounds", type=rounds, default=20, help=f"samples at most, {LEAST_ROUNDS} at least (20)")
    add("sizes", type=arguments.sizes, nargs="+", metavar="BxTxN", help="these shapes alone")
    add("dtypes", nargs="+", choices=cases.DTYPES, default=list(cases.DTYPES), help="both")
    skip = "skip a layer of others that takes longer for a call (1)"
    add("limit", type=arguments.positive, default=1.0, metavar="SECONDS", help=skip)
    add("out", type=Path, metavar="FILE", help="JSON to write (runs/speed-....json)")


def run(args):
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out = args.out
    if out is None:
        out = Path("runs") / f"speed-{device.type}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        out.parent.mkdir(exist_ok=True)
    if not out.parent.is_dir():
        raise arguments.UserError(f"there is no folder {out.parent} for {out.name}")
    torch.backends.cudnn.allow_tf32 = False  # products in float32 are that for everybody
    keep_freed_memory()
    environment = describe(device, PACKAGES)
    print(f"{environment['device_name']}; torch {environment['versions']['torch']}")
    if (environment["load_average"] or 0) > 0.5 and device.type == "cpu":
        print(
            f"load average {environment['load_average']:.1f}: other work makes these figures worse"
        )
    print("median of the rounds [quartiles]; times as long as the first, within each round")
    content = {"benchmark": "speed", "format": FORMAT, "complete": False, "limit": args.limit}
    content |= {"environment": environment, "rows": []}
    try:
        for rows in everything(args, device):
            content["rows"] += rows
            write_json(out, content)
            print("\n".join(lines(rows)))
        content["complete"] = True
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    write_json(out, content)
    print(f"\nwritten: {out}")
    failed = [row for row in content["rows"] if row["name"] in OURS and "error" in row]
    for row in failed:
        print(f"{row['dtype']}, {row['what']}: {row['name']}: {row['error']}", file=sys.stderr)
    return 130 if not content["complete"] else 1 if failed else 0


def everything(args, device):
    """Yields the rows of each case."""
    clock, seconds = Clock(device), SECONDS if device.type == "cpu" else SECONDS / 3
    limits = {"rounds": args.rounds, "seconds": seconds, "limit": args.limit}
    for group in cases.plan(args.sizes, args.dtypes):
        yield from measure(group, device, clock, **limits)
