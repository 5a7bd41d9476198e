"""The two charts of measured speed: a training step's time against T, and the memory it holds."""

import statistics

import matplotlib
from matplotlib.figure import Figure

from bench.environment import write_figure
from bench.speed import cases
from bench.speed.candidates import LAYER
from bench.speed.report import CHARTS, by_case, quartiles, span

SETTINGS = {"svg.hashsalt": "fastindrnn", "svg.fonttype": "none", "font.size": 9}
GAP = 11  # points between two labels at least


def draw(path, content):
    """Writes path's stem-NAME.svg for each chart that there are figures for, and yields the paths.
    The same JSON gives the same bytes."""
    found = by_case(content["rows"])
    for name, fill in (("time", fill_time), ("memory", fill_memory)):
        shown = CHARTS[name][0](found)
        if not shown:
            continue
        target = path.with_name(f"{path.stem}-{name}.svg")
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(9, 4), layout="constrained")
            names = list(dict.fromkeys(n for lines in shown.values() for n in lines))
            colors = {name: f"C{index % 10}" for index, name in enumerate(names)}
            panels = figure.subplots(
                1, len(shown), squeeze=False, sharex=name == "memory", sharey=True
            )[0]
            for axes, (dtype, lines) in zip(panels, shown.items(), strict=True):
                fill(axes, lines, colors)
                axes.set_title(dtype)
                axes.label_outer()
                axes.spines[["top", "right"]].set_visible(False)
            figure.suptitle(content["environment"]["device_name"])
            write_figure(target, figure, metadata={"Date": None})
        yield target


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


def fill_memory(axes, lines, colors):
    """A bar for each layer, with its name and figure at the end."""
    for place, (name, held) in enumerate(lines.items()):
        middle = statistics.median(held)
        axes.barh(place, middle, color=colors[name])
        axes.annotate(f" {name}: {span(held)}", (middle, place), va="center")
    axes.set(yticks=[], ylim=(len(lines) - 0.4, -0.6))
    axes.set(xlabel="bytes held in a training step / bytes of its input x")
    axes.margins(x=0.5)
