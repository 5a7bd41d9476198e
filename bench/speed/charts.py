"""The two charts of measured speed: a training step's time against T, and the memory it holds."""

import math
import statistics

import matplotlib
from matplotlib.figure import Figure

from bench.environment import write_figure
from bench.speed import cases
from bench.speed.candidates import LAYER
from bench.speed.cases import DTYPES, TRAINING
from bench.speed.rows import by_case, number, quartiles

SETTINGS = {"svg.hashsalt": "fastindrnn", "svg.fonttype": "none", "font.size": 9}


def draw(path, content):
    """Writes path's stem-NAME.svg for each chart that there are figures for; yields the path and an
    alternative text. The same JSON gives the same bytes."""
    found = by_case(content["rows"])
    for name, (series_of, fill, alt) in CHARTS.items():
        series = series_of(found)
        if not series:
            continue
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(9, 4), layout="constrained")
            figure.suptitle(content["environment"]["device_name"])
            names = dict.fromkeys(name for lines in series.values() for name in lines)
            colors = {name: f"C{index % 10}" for index, name in enumerate(names)}
            panels = figure.subplots(1, len(series), squeeze=False, sharex=True, sharey=True)[0]
            for axes, (dtype, lines) in zip(panels, series.items(), strict=True):
                fill(axes, lines, colors)
                axes.set_title(dtype)
                axes.label_outer()
                axes.spines[["top", "right"]].set_visible(False)
            target = path.with_name(f"{path.stem}-{name}.svg")
            write_figure(target, figure, metadata={"Date": None})
        yield target, alt


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


def fill_time(axes, lines, colors):
    """A line for each layer, and its quartiles as a band. The legend beside them has the layers in
    the order in which their lines begin, from above."""
    B, _, N = cases.MORE_STEPS[0]
    drawn = {}
    for name, points in lines.items():
        low, middle, high = zip(*(quartiles(row["ms"]) for row in points.values()), strict=True)
        options = {"color": colors[name], "linewidth": 2.5 if name == LAYER else 1}
        (line,) = axes.plot([*points], middle, marker=".", label=name, **options)
        axes.fill_between([*points], low, high, alpha=0.2, linewidth=0, color=colors[name])
        drawn[line] = middle[0]
    steps = sorted({T for points in lines.values() for T in points})
    axes.set(xscale="log", yscale="log", ylabel="training step, ms")
    axes.set(xlabel=f"T, time steps; B = {B}, N = {N}")
    axes.set_xticks(steps, [f"{T:,}" for T in steps], fontsize=7)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.grid(alpha=0.3)
    handles = sorted(drawn, key=drawn.get, reverse=True)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def memory(found):
    """{dtype: {name: [for each shape the bytes that a training step holds, in units of x's]}}"""
    series = {dtype: {} for dtype in DTYPES}
    for case, rows in found.items():
        size = math.prod(case.sizes) * DTYPES[case.dtype].itemsize
        for name, row in rows.items():
            if "bytes" in row:
                series[case.dtype].setdefault(name, []).append(row["bytes"] / size)
    return {dtype: lines for dtype, lines in series.items() if LAYER in lines}


def fill_memory(axes, lines, colors):
    """A bar for each layer, with its name and the median of its figures at the end."""
    for place, (name, held) in enumerate(lines.items()):
        middle = statistics.median(held)
        axes.barh(place, middle, color=colors[name])
        axes.annotate(f" {name}: {number(middle)}", (middle, place), va="center")
    axes.set(yticks=[], ylim=(len(lines) - 0.4, -0.6))
    axes.set(xlabel="bytes held in a training step / bytes of its input x")
    axes.margins(x=0.5)


CHARTS = {
    "time": (
        time_series,
        fill_time,
        "Line chart, both axes logarithmic: the time of a training step against the number of time "
        "steps T. A line for each layer; the legend names the uppermost first.",
    ),
    "memory": (
        memory,
        fill_memory,
        "Bar chart: the bytes that a training step holds, as multiples of its input's. A bar for "
        "each layer, with its name and its figure.",
    ),
}
