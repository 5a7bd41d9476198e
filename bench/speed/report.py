"""Draw measured speed: tables and plots of the JSON files that `python -m bench speed` writes.

Without a JSON: those of bench/results, into README.md. With one: on the terminal, or into the page
that --readme names. The plots lie beside the JSON. Nothing is measured.
"""

import json
import math
import os
import statistics
import sys
from pathlib import Path

from bench.arguments import UserError
from bench.environment import write_atomically
from bench.speed import cases
from bench.speed.candidates import COPY, LAYER, LSTM, RELU, SCAN
from bench.speed.cases import DTYPES, FORWARD, SCAN_BACKWARD, SCAN_FORWARD, TRAINING, Case

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- bench speed: begin -->", "<!-- bench speed: end -->"
FORMAT = 3
B, _, N = cases.MORE_STEPS[0]  # of the plot of time against T
SETTINGS = {"svg.hashsalt": "fastindrnn", "svg.fonttype": "none", "font.size": 9}


def add_arguments(parser):
    parser.add_argument("results", type=Path, nargs="*", metavar="JSON", help="what to draw")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help=f"write between its marks {BEGIN} and {END}"
    )


def run(args):
    paths = args.results or committed()
    readme = args.readme or (None if args.results else ROOT / "README.md")
    contents = {path: load(path) for path in paths}
    page = insert(readme, contents) if readme else section(contents, Path())
    for path, content in contents.items():
        for plot in draw(path, content):
            print(f"written: {plot}")
    if readme:
        write_atomically(readme, lambda temporary: temporary.write_text(page, encoding="utf-8"))
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


def split(readme):
    """The text of a page before, between and behind its two marks."""
    try:
        page = Path(readme).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme} cannot be read: {error.strerror}") from None
    head, begin, rest = page.partition(BEGIN)
    between, end, tail = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{readme} has no place for the tables: it needs {BEGIN} and {END}")
    return head + BEGIN, between, END + tail


def insert(readme, contents):
    """The text of the page with these results between its marks."""
    head, _, tail = split(readme)
    return f"{head}\n{section(contents, Path(readme).parent)}\n{tail}"


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


def ratios(rows, name, below):
    """How many times as long as `below` a candidate took in each round; None without figures."""
    above, below = (rows.get(each, {}).get("ms") for each in (name, below))
    return [a / b for a, b in zip(above, below, strict=True)] if above and below else None


def number(value):
    """Three digits, in full."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def span(values):
    """'1.2 to 3.4', or one number."""
    ends = dict.fromkeys(number(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def lines(rows):
    """One case for the terminal: median, quartiles, ratio to the first row, memory; or a word."""
    ((case, found),) = by_case(rows).items()
    first = next(iter(found))
    yield f"\n{case}"
    for name, row in found.items():
        if "ms" not in row:
            yield f"  {name:<18}{word(row)}"
            continue
        low, median, high = map(number, quartiles(row["ms"]))
        ratio = ratios(found, name, first)
        more = f"{number(statistics.median(ratio)):>8} x" if ratio and name != first else ""
        memory = f"  {number(row['bytes'] / 1e6)} MB" if "bytes" in row else ""
        shown = f"  {name:<18}{median:>9} ms  {f'[{low}, {high}]':<20}{more:<10}{memory}"
        yield shown.rstrip()


def word(row):
    """Why a row has no figures."""
    return next(row[key] for key in ("skipped", "wrong", "error") if key in row)


# Markdown.


def markdown(content, path):
    environment, found = content["environment"], by_case(content["rows"])
    count = min((len(row["ms"]) for row in content["rows"] if "ms" in row), default=0)
    parts = [
        f"**{environment['device_name']}**, torch {environment['versions']['torch']} "
        f"({environment['date'][:10]}, [figures]({path})). Medians of {count} rounds or more. "
        f"`{LAYER}` is in milliseconds; the other columns say how many times as long they take."
    ]
    for dtype in DTYPES:
        for what in (FORWARD, TRAINING):
            parts += layer_table(found, dtype, what)
    stem = path.removesuffix(".json")
    images = {name: describe(found) for name, (describe, _) in PLOTS.items()}
    parts += [f"![{alt}]({stem}-{name}.svg)" for name, alt in images.items() if alt]
    parts.append("\n".join(f"- {line}" for line in remarks(content, found)))
    return "\n\n".join(parts)


def select(found, dtype, what):
    """{sizes: {name: row}} of what the tables show."""
    return {
        case.sizes: rows
        for case, rows in found.items()
        if (case.dtype, case.what) == (dtype, what) and case.sizes not in cases.MORE_STEPS
    }


def layer_table(found, dtype, what):
    """A heading and a table, if there is anything to show."""
    shown = select(found, dtype, what)
    if not shown:
        return []
    others = list(dict.fromkeys(name for rows in shown.values() for name in rows))
    others.remove(LAYER)
    table = [["B, T, N", LAYER, *others], ["---", "---:", *["---:"] * len(others)]]
    for sizes, rows in shown.items():
        own = rows[LAYER].get("ms")
        cells = [number(statistics.median(own)) if own else no_figure(rows[LAYER])]
        for name in others:
            if ratio := ratios(rows, name, LAYER):
                cells.append(number(statistics.median(ratio)))
            else:
                cells.append(no_figure(rows.get(name, {})))
        table.append([", ".join(map(str, sizes)), *cells])
    title = f"{what.capitalize()}, {dtype}:"
    return [title, "\n".join(f"| {' | '.join(row)} |" for row in table)]


def no_figure(row):
    return "error" if "error" in row or "wrong" in row else "-"


def remarks(content, found):
    """What else there is, a line each."""
    if any("skipped" in row for row in content["rows"]):
        yield f"`-`: not called, as a call takes more than {content['limit']:g} s, or much memory."
    words = {}
    for row in content["rows"]:
        if "error" in row or "wrong" in row:
            words.setdefault((row["name"], row["dtype"], word(row)), []).append(row["what"])
    for (name, dtype, said), whats in words.items():
        yield f"`{name}`, {dtype}, {', '.join(dict.fromkeys(whats))}: {said}"
    for dtype in DTYPES:
        for what in (SCAN_FORWARD, SCAN_BACKWARD):
            shown, times = select(found, dtype, what).values(), []
            for name in (COPY, RELU):
                medians = [
                    statistics.median(r) for rows in shown if (r := ratios(rows, SCAN, name))
                ]
                what_of = "the backward of " if (what, name) == (SCAN_BACKWARD, RELU) else ""
                times += [f"{span(medians)} times {what_of}`{name}`"] if medians else []
            if times:
                yield f"{what.capitalize()}, {dtype}: `{SCAN}` takes {', '.join(times)}."
    held = [
        rows[LSTM]["bytes"] / rows[LAYER]["bytes"]
        for rows in found.values()
        if all("bytes" in rows.get(name, {}) for name in (LAYER, LSTM))
    ]
    if held:
        yield f"A training step of `{LSTM}` holds {span(held)} times as much as one of `{LAYER}`."
    for case, rows in found.items():
        if case.what in (cases.CALL, cases.CALL_WITH_GRADIENTS):
            times = [
                f"`{name}` {number(1e3 * statistics.median(row['ms']))} µs"
                for name, row in rows.items()
                if "ms" in row
            ]
            if times:
                yield f"{case.what.capitalize()} at {case.sizes}: {', '.join(times)}."
        if case.what == cases.THREADS:
            ones = {name: ratios(rows, "1 thread", name) for name in rows if name != "1 thread"}
            times = [
                f"{number(statistics.median(ratio))} times as fast on {name}"
                for name, ratio in ones.items()
                if ratio
            ]
            if times:
                yield f"`{SCAN}` at {case.sizes}, compared with 1 thread: {', '.join(times)}."
    if not content["complete"]:
        yield "The run was stopped before its end."


# Plots: for each, what one sees, None if there are no figures for it; and how it is drawn.


def draw(path, content):
    """Writes path's stem-NAME.svg for each plot that there are figures for, and yields the paths.
    The same JSON gives the same bytes."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed", file=sys.stderr)
        return
    found = by_case(content["rows"])
    for name, (describe, fill) in PLOTS.items():
        if describe(found) is None:
            continue
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(9, 4), layout="constrained")
            fill(figure, found)
            handles = {}
            for axes in figure.axes:
                axes.grid(alpha=0.3)
                handles |= {h.get_label(): h for h in axes.get_legend_handles_labels()[0]}
            figure.legend(handles=[*handles.values()], loc="outside right center", frameon=False)
            figure.suptitle(content["environment"]["device_name"])
            target = path.with_name(f"{path.stem}-{name}.svg")
            write_atomically(target, lambda temporary, figure=figure: save(figure, temporary))
        yield target


def save(figure, path):
    figure.savefig(path, format="svg", metadata={"Date": None})


def time_series(found):
    """The dtype, and {what: {name: [(T, quartiles of ms), ...]}}, of shapes that differ in T."""
    dtype = next((case.dtype for case in found if case.sizes in cases.MORE_STEPS), None)
    series = {FORWARD: {}, TRAINING: {}}
    for case in sorted(case for case in found if case.dtype == dtype and case.what in series):
        if (case.sizes[0], case.sizes[2]) == (B, N):
            for name, row in found[case].items():
                if "ms" in row:
                    point = case.sizes[1], *quartiles(row["ms"])
                    series[case.what].setdefault(name, []).append(point)
    return dtype, series


def describe_time(found):
    dtype, series = time_series(found)
    if not series[TRAINING]:
        return None
    last = max(points[-1][0] for points in series[TRAINING].values())
    ends = [
        f"{name} {number(points[-1][2])}"
        for name, points in series[TRAINING].items()
        if points[-1][0] == last
    ]
    return (
        f"Two line charts with logarithmic axes: milliseconds of a forward and of a training step "
        f"against the number of time steps T; B = {B}, N = {N}, {dtype}. A training step at "
        f"T = {last}: {', '.join(ends)} ms."
    )


def fill_time(figure, found):
    dtype, series = time_series(found)
    names = list(dict.fromkeys(name for shown in series.values() for name in shown))
    for axes, (what, shown) in zip(figure.subplots(1, 2), series.items(), strict=True):
        for name, points in shown.items():
            steps, low, middle, high = zip(*points, strict=True)
            width, color = 2.5 if name == LAYER else 1, f"C{names.index(name) % 10}"
            axes.plot(steps, middle, label=name, marker=".", linewidth=width, color=color)
            axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=color)
        axes.set(xscale="log", yscale="log", xlabel="T, time steps", ylabel="ms")
        steps = sorted({T for points in shown.values() for T, *_ in points})
        axes.set_xticks(steps, steps, fontsize=7)
        axes.minorticks_off()
        axes.set_title(f"{what}; B = {B}, N = {N}, {dtype}", fontsize=9)


def memory(found):
    """{name: {sizes: bytes that a training step holds, in units of x}}, in the first dtype."""
    dtype = next((dtype for dtype in DTYPES if select(found, dtype, TRAINING)), None)
    series = {}
    for sizes, rows in select(found, dtype, TRAINING).items():
        for name, row in rows.items():
            if "bytes" in row:
                held = row["bytes"] / (math.prod(sizes) * DTYPES[dtype].itemsize)
                series.setdefault(name, {})[sizes] = held
    return series


def describe_memory(found):
    words = [f"{name} {span(held.values())}" for name, held in memory(found).items()]
    if not words:
        return None
    return (
        f"Points on a logarithmic axis: bytes that a training step holds, divided by those of its "
        f"input, for each shape: {', '.join(words)}."
    )


def fill_memory(figure, found):
    axes, series = figure.add_subplot(), memory(found)
    sizes = list(dict.fromkeys(each for held in series.values() for each in held))
    for index, (name, held) in enumerate(series.items()):
        offset = 0.1 * (index - (len(series) - 1) / 2)
        x = [sizes.index(each) + offset for each in held]
        axes.plot(x, held.values(), label=name, marker="o", linestyle="")
    words = [", ".join(map(str, each)) for each in sizes]
    axes.set_xticks(range(len(sizes)), words, rotation=45, ha="right", fontsize=7)
    axes.set(ylabel="bytes held in a training step / bytes of x", yscale="log")


PLOTS = {"time": (describe_time, fill_time), "memory": (describe_memory, fill_memory)}
