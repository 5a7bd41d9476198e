"""Draw the plots of measured speed, and write its table into README.md.

Nothing is measured: all comes from the JSON files that `python -m bench speed` has written.
"""

import json
import sys
from pathlib import Path

from bench.arguments import UserError
from bench.environment import write_atomically
from bench.speed import plots, text

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- bench speed: begin -->", "<!-- bench speed: end -->"
FORMAT = 2


def add_arguments(parser):
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        metavar="JSON",
        help="default: all bench/results/speed-*.json",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        default=ROOT / "README.md",
        metavar="FILE",
        help="what to write the table into, between its two marks (default: README.md)",
    )


def run(args):
    paths = args.results or committed()
    if not paths:
        raise UserError(
            f"there is no {RESULTS.name}/speed-*.json to draw; python -m bench speed makes one"
        )
    contents = {path: load(path) for path in paths}
    shown = insert(args.readme, contents)
    for path, content in contents.items():
        for plot in plots.draw(path, content):
            print(f"written: {plot}")
    write_atomically(args.readme, lambda temporary: temporary.write_text(shown, encoding="utf-8"))
    print(f"written: {args.readme}")
    return 0


def committed():
    return sorted(RESULTS.glob("speed-*.json"))


def load(path):
    """The content of a JSON of `python -m bench speed`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or content.get("benchmark") != "speed":
        raise UserError(f"{path} is not of python -m bench speed")
    if content.get("format") != FORMAT:
        raise UserError(f"{path} is of another version of python -m bench speed: measure again")
    return content


def section(contents):
    """What stands between the two marks."""
    return "\n\n".join(text.markdown(content, path.stem) for path, content in contents.items())


def split(readme):
    """The text of a page before, between and behind its two marks."""
    try:
        page = Path(readme).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}") from None
    before, begin, rest = page.partition(BEGIN)
    between, end, behind = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{readme} has no place for the table: it needs {BEGIN} and {END}")
    return before + BEGIN, between, END + behind


def insert(readme, contents):
    """The text of the page with the section of these results in its place."""
    before, _, behind = split(readme)
    return f"{before}\n{section(contents)}\n{behind}"


def draw(path):
    for plot in plots.draw(path, load(path)):
        print(f"written: {plot}", file=sys.stdout)
