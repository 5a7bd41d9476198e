"""python -m bench COMMAND: the published experiments, the speed measurements and their report.

A command is a module with `add_arguments(parser)` and `run(args) -> exit status`. Only the one that
is asked for is imported: each has packages of its own.
"""

import argparse
import contextlib
import importlib
import sys

from bench.arguments import UserError

TASKS = {  # name, and module of bench.tasks: what is trained
    "adding": "networks on the adding problem",
    "airline": "networks that forecast airline passengers",
    "algorithms": "networks on the algorithmic tasks",
    "chars": "character language models",
    "handwriting": "networks to write, stroke by stroke",
    "memory": "networks whose gradients and memory are drawn",
    "mnist": "networks on MNIST, pixel by pixel",
    "skeleton": "networks that tell actions apart by how joints move",
    "speech": "networks that tell the speaker of each frame, JapaneseVowels",
    "tagging": "part-of-speech taggers in one direction and in both",
    "vowels": "networks that tell speakers apart by a vowel, JapaneseVowels",
}
RUNS = "writes checkpoint.pt, report.json and plots into a new folder of runs/, or --out"
COMMANDS = {  # name: (module, what it does and what it writes)
    **{name: (f"bench.tasks.{name}", f"train {what}; {RUNS}") for name, what in TASKS.items()},
    "speed": (
        "bench.speed.command",
        "measure layers and the recurrence alone beside what a user would pick instead; writes "
        "runs/speed-....json, or the file --out",
    ),
    "report": (
        "bench.speed.report",
        "draw what speed has measured; writes charts (SVG) beside each JSON, and without a JSON "
        "takes those of bench/results and writes their figures into README.md and docs/speed.md",
    ),
    "results": (
        "bench.page",
        "put what the tasks have measured on its pages; writes docs/results.md and README.md from "
        "the JSON files of bench/results, where the runs that are named are copied first",
    ),
    "tune": (
        "bench.tune",
        "compare the launch model of the GPU kernels with a sweep; writes a JSON if --out names it",
    ),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage of every option."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help shows the options\n")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser("python -m bench", description="Benchmarks of fastindrnn.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    try:
        for name, (path, purpose) in COMMANDS.items():
            options = subparsers.add_parser(
                name, help=purpose.partition("; ")[0], allow_abbrev=False
            )
            if name in argv[:1]:
                module = importlib.import_module(path)
                options.description = f"{module.__doc__}\nIt {purpose.partition('; ')[2]}."
                options.formatter_class = argparse.RawDescriptionHelpFormatter
                module.add_arguments(options)
        args = parser.parse_args(argv)
        sys.stdout.reconfigure(line_buffering=True)  # a line is seen when it is printed, in a pipe
        with contextlib.ExitStack() as args.held:
            return module.run(args)
    except ModuleNotFoundError as error:
        reason = f"{error}; pip install -e '.[bench]' installs what the benchmarks need"
    except UserError as error:
        reason = error
    print(f"python -m bench {argv[0]}: error: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
