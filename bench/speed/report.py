"""Draw measured speed: charts and tables of the JSON files that `python -m bench speed` writes.

Without a JSON: those of bench/results, into README.md. With one: on the terminal, or into the page
that --readme names. The charts lie beside the JSON. Nothing is measured.
"""

import json
import math
import os
import statistics
from pathlib import Path

from bench.arguments import UserError
from bench.environment import write
from bench.speed import cases
from bench.speed.candidates import LAYER, LSTM
from bench.speed.cases import DTYPES, TRAINING, Case

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- bench speed: begin -->", "<!-- bench speed: end -->"
FORMAT = 3


def add_arguments(parser):
    parser.add_argument("results", type=Path, nargs="*", metavar="JSON", help="what to draw")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help=f"write between its marks {BEGIN} and {END}"
    )


def run(args):
    from bench.speed import charts  # here, because it needs matplotlib

    paths = args.results or committed()
    readme = args.readme or (None if args.results else ROOT / "README.md")
    contents = {path: load(path) for path in paths}
    page = insert(readme, contents) if readme else section(contents, Path())
    for path, content in contents.items():
        for chart in charts.draw(path, content):
            print(f"written: {chart}")
    if readme:
        write(readme, page)
    print(f"written: {readme}" if readme else f"\n{page}")
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


def insert(readme, contents):
    """The text of the page with these results between its marks."""
    try:
        page = Path(readme).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}") from None
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{readme} has no place for the tables: it needs {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{section(contents, Path(readme).parent)}\n{END}{tail}"


def section(contents, folder):
    """The results as Markdown, for a page in `folder`."""
    parts = [
        markdown(content, Path(os.path.relpath(path, folder)).as_posix())
        for path, content in contents.items()
    ]
    return "\n\n".join(parts) or "Not measured yet."


# Figures of rows. A row is what became of one candidate in one case.


def by_case(rows):
    """{case: {name: row}}"""
    found = {}
    for row in rows:
        case = Case((row["B"], row["T"], row["N"]), row["dtype"], row["what"])
        found.setdefault(case, {})[row["name"]] = row
    return found


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive")


def ratio(rows, name, below):
    """How many times as long as `below` a candidate took: the median of the rounds; None without
    figures."""
    above, below = (rows.get(each, {}).get("ms") for each in (name, below))
    if not (above and below):
        return None
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def number(value):
    """Three digits, in full."""
    digits = max(2 - math.floor(math.log10(value)), 0) if value else 0
    shown = f"{value:,.{digits}f}"
    return shown.rstrip("0").rstrip(".") if digits else shown


def span(values):
    """'1.2 to 3.4', or one number."""
    ends = dict.fromkeys(number(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def word(row):
    """Why a row has no figures; None where it has some."""
    return next((row[key] for key in ("skipped", "wrong", "error") if key in row), None)


def lines(rows):
    """One case for the terminal: median, quartiles, ratio to the first row, memory; or a word."""
    ((case, found),) = by_case(rows).items()
    first = next(iter(found))
    yield f"\n{case}"
    for name, row in found.items():
        shown = word(row)
        if "ms" in row:
            low, median, high = map(number, quartiles(row["ms"]))
            times = "" if name == first else f"{number(ratio(found, name, first) or 1)} x"
            memory = f"{number(row['bytes'] / 1e6)} MB" if "bytes" in row else ""
            shown = f"{median:>9} ms  {f'[{low}, {high}]':<20}{times:>10}  {memory}"
        yield f"  {name:<18}{shown}".rstrip()


# Markdown.


def markdown(content, path):
    environment, found = content["environment"], by_case(content["rows"])
    count = min((len(row["ms"]) for row in content["rows"] if "ms" in row), default=0)
    whats = dict.fromkeys(case.what for case in found if case.what in cases.MEASURED)
    tables = {what: table(found, what) for what in whats}
    parts = [
        f"**{environment['device_name']}**, torch {environment['versions']['torch']} "
        f"({environment['date'][:10]}, [figures]({path})): medians of {count} rounds or more."
    ]
    stem = path.removesuffix(".json")
    for name, (of, describe) in CHARTS.items():
        if series := of(found):
            sentence, alt = describe(series)
            parts += [sentence, f"![{alt}]({stem}-{name}.svg)"]
    if TRAINING in tables:
        parts += [tables.pop(TRAINING)]
    if folded := "\n\n".join([*tables.values(), *remarks(content)]):
        summary = ", ".join(tables) or "More"
        parts.append(
            f'<details markdown="1"><summary>{summary}</summary>\n\n{folded}\n\n</details>'
        )
    return "\n\n".join(parts)


def table(found, what):
    """A line for each shape. The first candidate in milliseconds, of the others how many times as
    long they take; in both dtypes, where both were measured."""
    shown = {}
    for case, rows in found.items():
        if case.what == what and case.sizes not in cases.MORE_STEPS:
            shown.setdefault(case.sizes, {})[case.dtype] = rows
    names = list(
        dict.fromkeys(n for each in shown.values() for rows in each.values() for n in rows)
    )
    dtypes = [dtype for dtype in DTYPES if any(dtype in each for each in shown.values())]
    first, *others = names
    lines = [["B, T, N", f"{first}, ms", *others], ["---", *["---:"] * len(names)]]
    for sizes, each in shown.items():
        cells = [" / ".join(cell(each.get(d, {}), name, first) for d in dtypes) for name in names]
        lines.append([", ".join(map(str, sizes)), *cells])
    drawn = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"{what.capitalize()}, {' / '.join(dtypes)}; others: times as long as `{first}`"
    return f"{title}:\n\n{drawn}"


def cell(rows, name, first):
    row = rows.get(name, {})
    if name == first and "ms" in row:
        return number(statistics.median(row["ms"]))
    times = ratio(rows, name, first)
    return number(times) if times else "error" if "error" in row or "wrong" in row else "-"


def remarks(content):
    if any("skipped" in row for row in content["rows"]):
        yield f"`-`: not called, as a call takes more than {content['limit']:g} s, or much memory."
    words = {}
    for row in content["rows"]:
        if "error" in row or "wrong" in row:
            words.setdefault((row["name"], row["dtype"], word(row)), []).append(row["what"])
    for (name, dtype, said), whats in words.items():
        yield f"`{name}`, {dtype}, {', '.join(dict.fromkeys(whats))}: {said}"
    if not content["complete"]:
        yield "The run was stopped before its end."


# What the charts show: the figures, and a sentence and an alternative text of each.


def time_series(found):
    """{dtype: {name: {T: row}}} of training steps at shapes that differ in T alone; of dtypes in
    which ours was measured at several."""
    B, _, N = cases.MORE_STEPS[0]
    series = {}
    for case in sorted(case for case in found if case.what == TRAINING):
        if (case.sizes[0], case.sizes[2]) == (B, N):
            for name, row in found[case].items():
                if "ms" in row:
                    of = series.setdefault(case.dtype, {}).setdefault(name, {})
                    of[case.sizes[1]] = row
    return {d: series[d] for d in DTYPES if len(series.get(d, {}).get(LAYER, {})) > 1}


def describe_time(series):
    (B, _, N), order = cases.MORE_STEPS[0], []
    common = set.intersection(*(set(ls[LAYER]) & set(ls.get(LSTM, ())) for ls in series.values()))
    lead = ""
    if common:
        at = {d: {n: ls[n][max(common)] for n in (LAYER, LSTM)} for d, ls in series.items()}
        times = [f"{number(ratio(rows, LSTM, LAYER))} ({d})" for d, rows in at.items()]
        lead = (
            f"At T = {max(common):,} a training step of `{LSTM}` takes {' and '.join(times)} times "
            f"as long as one of `{LAYER}`."
        )
    for dtype, lines in series.items():
        last = max(lines[LAYER])
        rows = {name: points[last] for name, points in lines.items() if last in points}
        ends = sorted((ratio(rows, name, LAYER), name) for name in rows)
        shown = ", ".join(f"{name} {number(times)}" for times, name in ends)
        order.append(f"In {dtype} at T = {last:,}, from the lowest line up: {shown}.")
    alt = (
        f"Line charts, both axes logarithmic: the time of a training step against the number of "
        f"time steps T, for B = {B}, N = {N}. Times are multiples of {LAYER}'s. {' '.join(order)}"
    )
    return lead, alt


def memory(found):
    """{dtype: {name: [for each shape the bytes that a training step holds, in units of x's]}}"""
    series = {}
    for case, rows in found.items():
        for name, row in rows.items():
            if "bytes" in row:
                held = row["bytes"] / (math.prod(case.sizes) * DTYPES[case.dtype].itemsize)
                series.setdefault(case.dtype, {}).setdefault(name, []).append(held)
    return {d: series[d] for d in DTYPES if LAYER in series.get(d, {})}


def describe_memory(series):
    times = [
        f"{number(statistics.median(held[LSTM]) / statistics.median(held[LAYER]))} ({dtype})"
        for dtype, held in series.items()
        if LSTM in held
    ]
    lead = (
        f"A training step of `{LSTM}` holds {' and '.join(times)} times as much memory as one of "
        f"`{LAYER}`."
        if times
        else ""
    )
    ends = [
        f"In {dtype}: {', '.join(f'{name} {span(values)}' for name, values in held.items())}."
        for dtype, held in series.items()
    ]
    alt = f"Bar charts: bytes that a training step holds, as multiples of x's. {' '.join(ends)}"
    return lead, alt


# For each chart: its figures, and how to say them.
CHARTS = {"time": (time_series, describe_time), "memory": (memory, describe_memory)}
