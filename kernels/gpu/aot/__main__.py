"""The command line; see the package."""

import argparse
import json
import sys
from pathlib import Path

import triton

from . import __doc__ as description
from .cases import TARGETS
from .compiler import Failure, Report, compile_all, jobs_of


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastindrnn.kernels.gpu.aot", description=description
    )
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    options = parser.parse_args(arguments)
    print("triton", triton.__version__)
    print(f"{'target':7} {'dtype':6} {'kernel':43}registers spilled shared barriers instructions "
          "per element")  # fmt: skip
    reports = compile_all(jobs_of(options.target), options.processes)
    for report in reports:
        line = f"{report.target:7} {report.dtype:6} {report.name:43}"
        if isinstance(report, Failure):
            print(f"{line} not compiled: {report.reason}")
            continue
        per_element = "" if report.per_element is None else f"{report.per_element:.1f}"
        print(
            f"{line}{report.registers:9}{report.spilled:8}{report.shared:7}{report.barriers:9}"
            f"{report.instructions:13}{per_element:>12}"
        )
    failures = [report for report in reports if isinstance(report, Failure)]
    spilled = sum(isinstance(report, Report) and report.spilled > 0 for report in reports)
    print(
        f"{len(reports)} kernels: {len(reports) - len(failures)} compiled, {spilled} spill, "
        f"{len(failures)} not compiled"
    )
    if options.out:
        rows = [report._asdict() for report in reports]
        options.out.write_text(
            json.dumps({"triton": triton.__version__, "kernels": rows}, indent=1) + "\n"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
