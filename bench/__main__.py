"""python -m bench COMMAND: the published experiments, the speed measurements and their report.

A command is a module with `add_arguments(parser)` and `run(args) -> exit status`; a new one is a
line in `COMMANDS`.
"""

import argparse
import sys

from bench import tune
from bench.arguments import UserError
from bench.speed import command, report
from bench.tasks import adding, mnist

COMMANDS = {"adding": adding, "mnist": mnist, "speed": command, "report": report, "tune": tune}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage of every option."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}; --help shows the options\n")


def main(argv=None):
    parser = Parser(prog="python -m bench", description="Benchmarks of fastindrnn.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = module.__doc__.splitlines()[0]
        subparser = subparsers.add_parser(
            name, help=summary, description=summary, allow_abbrev=False
        )
        module.add_arguments(subparser)
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(line_buffering=True)  # a line is seen when it is printed, also in a pipe
    try:
        return COMMANDS[args.command].run(args)
    except UserError as error:
        print(f"python -m bench {args.command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
