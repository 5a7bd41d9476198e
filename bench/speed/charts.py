"""The two charts of measured speed: a training step's time against T, and the memory it holds. Of
each its figures, a sentence and an alternative text on them, and how they are drawn."""

import math
import statistics

import matplotlib
from matplotlib.figure import Figure

from bench.environment import write_figure
from bench.speed import cases
from bench.speed.candidates import LAYER, LSTM
from bench.speed.cases import DTYPES, TRAINING
from bench.speed.rows import by_case, number, quartiles, ratio, span

SETTINGS = {"svg.hashsalt": "fastindrnn", "svg.fonttype": "none", "font.size": 9}
GAP = 11  # points between two labels at least


def draw(path, content):
    """Writes path's stem-NAME.svg for each chart that there are figures for, and yields the paths.
    The same JSON gives the same bytes."""
    found = by_case(content["rows"])
    for name, (of, _, fill) in CHARTS.items():
        series = of(found)
        if not series:
            continue
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(9, 4), layout="constrained")
            figure.suptitle(content["environment"]["device_name"])
            names = dict.fromkeys(name for lines in series.values() for name in lines)
            colors = {name: f"C{index % 10}" for index, name in enumerate(names)}
            shared = {"sharex": name == "memory", "sharey": True}
            panels = figure.subplots(1, len(series), squeeze=False, **shared)[0]
            for axes, (dtype, lines) in zip(panels, series.items(), strict=True):
                fill(axes, lines, colors)
                axes.set_title(dtype)
                axes.label_outer()
                axes.spines[["top", "right"]].set_visible(False)
            target = path.with_name(f"{path.stem}-{name}.svg")
            write_figure(target, figure, metadata={"Date": None})
        yield target


def by_dtype(values):
    """'4.8 (float32) and 7.4 (bfloat16) times', of {dtype: value}."""
    return " and ".join(f"{number(x)} ({dtype})" for dtype, x in values.items()) + " times"


def time_series(found):
    """{dtype: {name: {T: row}}} of training steps at shapes that differ in T alone; of dtypes in
    which ours was measured at several."""
    B, _, N = cases.MORE_STEPS[0]
    series = {dtype: {} for dtype in DTYPES}
    for case in sorted(found):
        if case.what == TRAINING and (case.sizes[0], case.sizes[2]) == (B, N):
            for name, row in found[case].items():
                if "ms" in row:
                    series[case.dtype].setdefault(name, {})[case.sizes[1]] = row
    return {dtype: lines for dtype, lines in series.items() if len(lines.get(LAYER, ())) > 1}


def describe_time(series):
    (B, _, N), sentence, order = cases.MORE_STEPS[0], "", []

    def at(dtype, T):
        return {name: points[T] for name, points in series[dtype].items() if T in points}

    steps = [set(lines[LAYER]) & set(lines.get(LSTM, ())) for lines in series.values()]
    if common := set.intersection(*steps):
        T = max(common)
        times = by_dtype({dtype: ratio(at(dtype, T), LSTM, LAYER) for dtype in series})
        sentence = (
            f"At T = {T:,} a training step of `{LSTM}` takes {times} as long as one of `{LAYER}`."
        )
    for dtype, lines in series.items():
        rows = at(dtype, T := max(lines[LAYER]))
        ends = sorted((ratio(rows, name, LAYER), name) for name in rows)
        shown = ", ".join(f"{name} {number(times)}" for times, name in ends)
        order.append(f"In {dtype} at T = {T:,}, from the lowest line up: {shown}.")
    return sentence, (
        f"Line charts, both axes logarithmic: the time of a training step against the number of "
        f"time steps T, for B = {B}, N = {N}. Times are multiples of {LAYER}'s. {' '.join(order)}"
    )


def fill_time(axes, lines, colors):
    """A line for each layer, with its name at the end, and its quartiles as a band."""
    B, _, N = cases.MORE_STEPS[0]
    labels = []
    for name, points in lines.items():
        steps = list(points)
        low, middle, high = zip(*(quartiles(row["ms"]) for row in points.values()), strict=True)
        width = 2.5 if name == LAYER else 1
        axes.plot(steps, middle, marker=".", linewidth=width, color=colors[name])
        axes.fill_between(steps, low, high, alpha=0.2, linewidth=0, color=colors[name])
        labels.append((middle[-1], steps[-1], name))
    steps = sorted({T for points in lines.values() for T in points})
    room = steps[-1] * (steps[-1] / steps[0]) ** 0.4  # a third of the width, for the names
    axes.set(xscale="log", yscale="log", ylabel="training step, ms")
    axes.set(xlabel=f"T, time steps; B = {B}, N = {N}", xlim=(steps[0], room))
    axes.set_xticks(steps, [f"{T:,}" for T in steps], fontsize=7)
    axes.minorticks_off()
    axes.margins(y=0.1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10f}".rstrip("0").rstrip("."))
    axes.grid(alpha=0.3)
    label_ends(axes, labels, colors)


def label_ends(axes, labels, colors):
    """Writes each (y, x, name) at its point, moved up where it would touch the one below: right of
    the last x, and above the end of a line that ends before."""
    last, free = max(x for _, x, _ in labels), {}
    for y, x, name in sorted(labels):
        side, align = (5, "left") if x == last else (0, "right")
        at = axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi
        height = max(at + (0 if x == last else 10), free.get(side, 0))
        free[side] = height + GAP
        options = {"textcoords": "offset points", "ha": align, "va": "center"}
        options |= {"color": colors[name], "weight": "bold" if name == LAYER else "normal"}
        axes.annotate(name, (x, y), xytext=(side, height - at), **options)


def memory(found):
    """{dtype: {name: [for each shape the bytes that a training step holds, in units of x's]}}"""
    series = {dtype: {} for dtype in DTYPES}
    for case, rows in found.items():
        size = math.prod(case.sizes) * DTYPES[case.dtype].itemsize
        for name, row in rows.items():
            if "bytes" in row:
                series[case.dtype].setdefault(name, []).append(row["bytes"] / size)
    return {dtype: lines for dtype, lines in series.items() if LAYER in lines}


def describe_memory(series):
    middle = {d: {n: statistics.median(x) for n, x in lines.items()} for d, lines in series.items()}
    times = {dtype: held[LSTM] / held[LAYER] for dtype, held in middle.items() if LSTM in held}
    sentence = (
        f"A training step of `{LSTM}` holds {by_dtype(times)} as much memory as one of `{LAYER}`."
    )
    ends = [
        f"In {dtype}: {', '.join(f'{name} {span(held)}' for name, held in lines.items())}."
        for dtype, lines in series.items()
    ]
    alt = f"Bar charts: bytes that a training step holds, as multiples of x's. {' '.join(ends)}"
    return sentence if times else "", alt


def fill_memory(axes, lines, colors):
    """A bar for each layer, with its name and figure at the end."""
    for place, (name, held) in enumerate(lines.items()):
        middle = statistics.median(held)
        axes.barh(place, middle, color=colors[name])
        axes.annotate(f" {name}: {span(held)}", (middle, place), va="center")
    axes.set(yticks=[], ylim=(len(lines) - 0.4, -0.6))
    axes.set(xlabel="bytes held in a training step / bytes of its input x")
    axes.margins(x=0.5)


CHARTS = {
    "time": (time_series, describe_time, fill_time),
    "memory": (memory, describe_memory, fill_memory),
}
