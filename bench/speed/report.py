"""Draw measured speed: charts and tables of the JSON files that `python -m bench speed` writes.

Without a JSON, of those in bench/results: the charts and a short table into README.md, all tables
into docs/speed.md. With one: all tables on the terminal. The charts lie beside the JSON. Nothing is
measured.
"""

import itertools
import json
import statistics
from pathlib import Path

from bench.arguments import UserError
from bench.environment import load_in_words, replace_between, write
from bench.speed import cases
from bench.speed.candidates import GRU, LAYER, LINEAR, LSTM, MIN_GRU
from bench.speed.cases import DTYPES
from bench.speed.rows import FORMAT, by_case, number, ratio

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
MARKS = "<!-- bench speed: begin -->", "<!-- bench speed: end -->"
# The short table: batches, wide layers, many short sequences, a long one.
SHOWN = (32, 256, 128), (32, 1024, 128), (16, 784, 512), (1024, 20, 512), (1, 65536, 256)
BESIDE = LAYER, LINEAR, GRU, LSTM, MIN_GRU


def add_arguments(parser):
    parser.add_argument("results", type=Path, nargs="*", metavar="JSON", help="what to draw")


def run(args):
    from bench.speed import charts  # here, because it needs matplotlib

    contents = {path: load(path) for path in args.results or sorted(RESULTS.glob("speed-*.json"))}
    drawn = {path: list(charts.draw(path, content)) for path, content in contents.items()}
    for chart, _ in itertools.chain(*drawn.values()):
        print(f"written: {chart}")
    if args.results:
        for path, content in contents.items():
            print(f"\n{machine(content, path)}\n\n{tables(content)}")
        return 0
    short, full = [], []
    for path, content in contents.items():
        place = path.relative_to(ROOT).as_posix()
        images = [f"![{alt}]({chart.relative_to(ROOT).as_posix()})" for chart, alt in drawn[path]]
        table_of_few = table(by_case(content["rows"]), cases.LAYERS, SHOWN, BESIDE)
        short += [machine(content, place), *images, table_of_few]
        full += [machine(content, f"../{place}"), tables(content)]
    for page, parts in ((ROOT / "README.md", short), (ROOT / "docs" / "speed.md", full)):
        text = page.read_text(encoding="utf-8")
        write(page, replace_between(text, *MARKS, "\n\n".join(parts)))
        print(f"written: {page}")
    return 0


def load(path):
    """The content of a JSON of `python -m bench speed`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    kind = isinstance(content, dict) and (content.get("benchmark"), content.get("format"))
    if kind != ("speed", FORMAT):
        raise UserError(f"{path} is not of this version of python -m bench speed")
    return content


def machine(content, path):
    """What the figures were measured on. path: of the JSON, from the page's folder."""
    environment = content["environment"]
    count = min((len(row["ms"]) for row in content["rows"] if "ms" in row), default=0)
    return (
        f"**{environment['device_name']}**, torch {environment['versions']['torch']} "
        f"({environment['date'][:10]}, {load_in_words(environment)}, "
        f"[figures]({path})): medians of {count} rounds or more; "
        f"`-`: not measured, as such a call of others takes more than {content['limit']:g} s."
    )


def tables(content):
    """All that was measured, and what raised."""
    found = by_case(content["rows"])
    parts = [table(found, whats) for whats in (cases.LAYERS, cases.SCANS, cases.CALLS)]
    if any("bytes" in row for row in content["rows"]):
        parts.append(table(found, [cases.TRAINING], cell=memory, unit="MB held"))
    raised = {}
    for row in content["rows"]:
        if "error" in row:
            raised.setdefault((row["name"], row["dtype"], row["error"]), []).append(row["what"])
    for (name, dtype, said), whats in raised.items():
        parts.append(f"`{name}`, {dtype}, {', '.join(dict.fromkeys(whats))}: {said}")
    if not content["complete"]:
        parts.append("The run was stopped before its end.")
    return "\n\n".join(part for part in parts if part)


def time(rows, name, first):
    """Milliseconds of the first candidate; of the others how many times as long they take."""
    row, times = rows.get(name, {}), ratio(rows, name, first)
    if name == first and "ms" in row:
        return number(statistics.median(row["ms"]))
    return number(times) if times else "error" if "error" in row else "-"


def memory(rows, name, first):
    """Megabytes of the first candidate; of the others how many times as much they hold."""
    held, least = (rows.get(each, {}).get("bytes") for each in (name, first))
    if not (held and least):
        return "-"
    return number(held / (1e6 if name == first else least))


def table(found, whats, sizes=None, names=None, cell=time, unit="ms"):
    """A line for each case, with both dtypes in a cell; only some sizes and candidates where these
    are named. Empty where nothing of it was measured."""
    lines, measured = {}, {}
    for case, rows in found.items():
        if case.what in whats and case.sizes in (sizes or [case.sizes]):
            lines.setdefault((case.what, case.sizes), {})[case.dtype] = rows
            measured |= {name: None for name in rows if name in (names or rows)}
    if not lines:
        return ""
    dtypes = [dtype for dtype in DTYPES if any(dtype in both for both in lines.values())]
    first, *others = measured
    drawn = [
        f"{' / '.join(dtypes)}; `{first}` in {unit}, the others in multiples of it:\n",
        f"| | B, T, N | {' | '.join([f'{first}, {unit}', *others])} |",
        f"|---|---|{'---:|' * len(measured)}",
    ]
    for what, size in sorted(lines, key=lambda line: (whats.index(line[0]), line[1])):
        both = [lines[what, size].get(dtype, {}) for dtype in dtypes]
        cells = [" / ".join(cell(rows, name, first) for rows in both) for name in measured]
        drawn.append(f"| {what} | {', '.join(map(str, size))} | {' | '.join(cells)} |")
    return "\n".join(drawn)
