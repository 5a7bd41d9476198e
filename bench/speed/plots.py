"""Plots of a run's JSON, as SVG files beside it; the same JSON gives the same bytes."""

import sys

from bench.environment import write_atomically
from bench.speed import text
from bench.speed.candidates import LAYER, LINEAR
from bench.speed.cases import DTYPES, FORWARD, SCAN_BACKWARD, SCAN_FORWARD, TRAINING

SETTINGS = {"svg.hashsalt": "fastindrnn", "svg.fonttype": "none", "font.size": 9}


def draw(path, content):
    """Writes path's stem-NAME.svg for each plot that the content has figures for; their paths."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed", file=sys.stderr)
        return []
    written = []
    for name, fill in PLOTS.items():
        with matplotlib.rc_context(SETTINGS):
            figure = Figure(figsize=(8, 4), layout="constrained")
            if not fill(figure, content):
                continue
            figure.suptitle(content["environment"]["device_name"])
            target = path.with_name(f"{path.stem}-{name}.svg")
            write_atomically(target, lambda temporary, figure=figure: save(figure, temporary))
        written.append(target)
    return written


def save(figure, path):
    figure.savefig(path, format="svg", metadata={"Date": None})


def time_against_steps(figure, content):
    """The sweep over T: forward of everybody, and our training step beside nn.Linear's."""
    sweeps = [sweep for sweep in content["growth"] if sweep["variable"] == "T"]
    if not sweeps:
        return False
    axes, (sweep,) = figure.add_subplot(), sweeps
    for name, points in sweep["ms"].items():
        dashed = not name.endswith(f", {FORWARD}")
        ours = name.startswith(LAYER)
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            marker=".",
            linestyle=":" if dashed else "-",
            linewidth=2.5 if ours else 1,
        )
    axes.set_xscale("log", base=2)
    axes.set(yscale="log", xlabel="T, time steps", ylabel="ms")
    axes.set_title(f"(B, T, N) = ({sweep['sizes']}), {sweep['dtype']}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return True


def by_size(axes, series):
    """series: {label: {sizes: value or (value, lower, upper)}}; sizes as words along x."""
    sizes = list(dict.fromkeys(each for points in series.values() for each in points))
    for index, (label, points) in enumerate(series.items()):
        x = [sizes.index(each) + 0.12 * (index - (len(series) - 1) / 2) for each in points]
        values = [v if isinstance(v, tuple) else (v, v, v) for v in points.values()]
        errors = [[v - low for v, low, _ in values], [high - v for v, _, high in values]]
        y = [v for v, _, _ in values]
        axes.errorbar(x, y, yerr=errors, label=label, marker="o", markersize=4, linestyle="")
    words = [", ".join(map(str, each)) for each in sizes]
    axes.set_xticks(range(len(sizes)), words, rotation=45, ha="right", fontsize=7)
    axes.grid(alpha=0.3)
    if sizes:
        axes.legend(fontsize=7)
    return bool(sizes)


def sizes_of(record):
    return tuple(record["sizes"].values())


def ratio_to_linear(figure, content):
    """Our time over nn.Linear's, with quartiles."""
    shown = []
    for axes, what in zip(figure.subplots(1, 2, sharey=True), (FORWARD, TRAINING), strict=True):
        series = {}
        for dtype in DTYPES:
            for layers in sorted({r["layers"] for r in content["records"] if r["what"] == what}):
                found = {
                    sizes_of(record): (ratio["median"], ratio["lower"], ratio["upper"])
                    for record in text.find(content, what, layers, dtype)
                    if (ratio := record["ratios"].get(LINEAR, {}).get(LAYER))
                }
                if found:
                    series[f"{dtype}, {layers} layer{'s' if layers > 1 else ''}"] = found
        axes.axhline(1, color="grey", linewidth=1)
        axes.set(title=what)
        if by_size(axes, series):
            shown += series.values()
    medians = [median for points in shown for median, _, _ in points.values()]
    # A quartile far off must not press everything else to the ground.
    figure.axes[0].set(
        ylabel="time of IndRNN / time of nn.Linear", ylim=(0, 1.3 * max(medians, default=1))
    )
    return bool(shown)


def share_of_bandwidth(figure, content):
    """The recurrence alone: bytes it has to move a second, over those of a copy."""
    series = {
        f"{what}, {dtype}": found
        for what, scale in ((SCAN_FORWARD, 1), (SCAN_BACKWARD, 1.5))
        for dtype in DTYPES
        if (found := text.copy_shares(content, what, dtype, scale))
    }
    if not series:
        return False
    axes = figure.add_subplot()
    axes.axhline(1, color="grey", linewidth=1)
    axes.set(ylabel="share of the bandwidth of a copy")
    return by_size(axes, series)


def memory_of_training(figure, content):
    """What a training step of one layer holds, in units of its input."""
    dtype, series = text.main_dtype(content), {}
    for record in text.find(content, TRAINING, 1, dtype):
        size = DTYPES[dtype].itemsize
        for each in sizes_of(record):
            size *= each
        for name, held in record["memory_bytes"].items():
            series.setdefault(name, {})[sizes_of(record)] = held / size
    if not series:
        return False
    axes = figure.add_subplot()
    axes.set(ylabel="bytes held in a training step / bytes of x", yscale="log")
    axes.set_title(f"one layer, {dtype}", fontsize=9)
    return by_size(axes, series)


PLOTS = {
    "time": time_against_steps,
    "ratio": ratio_to_linear,
    "bandwidth": share_of_bandwidth,
    "memory": memory_of_training,
}
