"""Pictures of a spiking network at work. Gray alone: lines differ in style and marker, maps in darkness.

Figures are matplotlib's, made without pyplot and its global state; `save` writes one as PNG and as SVG.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spikezip_hf.analysis.closeup import CloseUp
from spikezip_hf.analysis.energy_account import digits
from spikezip_hf.analysis.recording import Recording

try:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter
except ImportError as error:
    raise ImportError(f"Pictures need matplotlib ({error}): pip install 'spikezip-hf[demo]'.") from error

WHOLE = MaxNLocator(integer=True, min_n_ticks=2)
STEPS = "time-step T"


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.png and `name`.svg; the same figure gives the same files. Its layout is then final."""
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    settings = {"svg.hashsalt": name, "svg.fonttype": "none"}  # letters stay letters: any script, and to be searched
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of the PNG's own font
        figure.savefig(paths[0], dpi=150, metadata={"Software": None})
        figure.set_layout_engine("none")  # all is in its place now, and finding it is half of the work
        figure.savefig(paths[1], metadata={"Date": None, "Creator": None})
    return paths


def accuracy_figure(course: Mapping[str, Any]) -> Figure:
    """Accuracy and agreement with the quantized network against T (paper Fig. 5), of what `time_course` returned."""
    figure = new_figure(7, 4)
    axes = figure.subplots()
    steps = range(1, len(course["agreement per step"]) + 1)
    every = max(1, len(steps) // 12)
    if course["T_eq"]:
        first, last = course["T_eq"]["min"], course["T_eq"]["max"]
        axes.axvspan(first, last, color="0.9", label=f"samples settle (T_eq {first} to {last})")
    agreement: dict[str, Any] = {
        "color": "0.45",
        "linestyle": "--",
        "marker": "o",
        "markersize": 4,
        "markerfacecolor": "white",
    }
    axes.plot(steps, course["agreement per step"], markevery=every, label="agreement with the QANN", **agreement)
    if course["accuracy per step"]:
        axes.plot(steps, course["accuracy per step"], color="black", linewidth=2, label="accuracy of the SNN")
        axes.axhline(course["QANN accuracy"], color="black", linestyle=":", label="accuracy of the QANN")
        if course["T_up"]:
            at = course["T_up"]
            axes.plot(at, course["accuracy per step"][at - 1], "k^", markersize=9, linestyle="", label=f"T_up = {at}")
    axes.set(xlabel=STEPS, ylabel="share of samples", ylim=(0, 1.03), xlim=(1, max(2, len(steps))))
    axes.xaxis.set_major_locator(WHOLE)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="0.93")
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", framealpha=1)
    return figure


def equilibrium_figure(course: Mapping[str, Any]) -> Figure:
    """How many samples settle at which step."""
    figure = new_figure(7, 3)
    axes = figure.subplots()
    counts = {int(step): count for step, count in course["equilibrium steps"].items()}
    axes.bar(list(counts), list(counts.values()), width=0.9, color="0.55", edgecolor="black", linewidth=0.6)
    if course["T_eq"]:
        axes.axvline(course["T_eq"]["mean"], color="black", linestyle="--", label=f"mean {course['T_eq']['mean']}")
        tail = course["T_eq"]["95th percentile"]
        axes.axvline(tail, color="black", linestyle=":", label=f"95th percentile {tail}")
        axes.legend(framealpha=1)
    missed = course["samples"] - course["at equilibrium"]
    axes.set(xlabel="T_eq (time-steps)", ylabel="samples")
    if missed:
        axes.set_title(f"{missed} samples had not settled after {course['T']} steps", fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return figure


def rate_figure(recording: Recording) -> Figure:
    """Firing rate of each node in each step, over all samples."""
    return rate_map(recording.mean_firing_rate(), recording.node_names)


def rate_map(firing_rate: torch.Tensor, node_names: Sequence[str]) -> Figure:
    """Firing rates (T, nodes) as a map: a row for each node, a column for each step."""
    rates = firing_rate.T
    figure = new_figure(7.5, 1.2 + 0.14 * len(rates))
    axes = figure.subplots()
    extent = (0.5, rates.shape[1] + 0.5, len(rates) - 0.5, -0.5)
    image = axes.imshow(rates.numpy(), aspect="auto", cmap="gray_r", vmin=0, extent=extent, interpolation="nearest")
    names = [short(name) for name in node_names]
    axes.set_yticks(range(len(names)), names, fontsize=6.5)
    axes.set(xlabel=STEPS, ylabel="node, from input to output")
    axes.xaxis.set_major_locator(WHOLE)
    figure.colorbar(image, label="spikes per neuron per step", shrink=min(1.0, 3.5 / figure.get_figheight()))
    return figure


def raster_figure(seen: CloseUp, nodes: Sequence[str], neurons: int = 40) -> Figure:
    """When some neurons of each node fired: a bar for a spike of +1, a ring for one of -1.

    Args:
        neurons: most of a node, evenly spread over it.
    """
    chosen = {name: evenly_spread(seen.levels[name][0].numel(), neurons) for name in nodes}
    figure = new_figure(7.5, 0.8 + sum(0.45 + 0.05 * len(some) for some in chosen.values()))
    rows = figure.subplots(
        len(nodes), sharex=True, squeeze=False, height_ratios=[len(some) + 4 for some in chosen.values()]
    )
    bar = {"marker": "|", "s": 14, "linewidths": 1.2, "color": "black"}
    ring = {"marker": "o", "s": 7, "linewidths": 0.6, "facecolors": "none", "edgecolors": "0.35"}
    for (name, some), axes in zip(chosen.items(), rows[:, 0]):
        raster = seen.raster(name, some)
        for fired, look in ((raster > 0, bar), (raster < 0, ring)):
            steps, places = fired.numpy().nonzero()
            axes.scatter(steps + 1, places, **look)
        total = seen.levels[name][0].numel()
        axes.set_title(f"{short(name)}: {len(some)} of {total} neurons", fontsize=8, loc="left")
        axes.set(ylim=(len(some), -1), ylabel="neuron")
        axes.set_yticks([])
        if seen.equilibrium_step > 0:
            axes.axvline(seen.equilibrium_step + 0.5, color="0.6", linestyle="--", linewidth=1)
    last = len(seen.logits_per_step)
    axes.set(xlabel=f"{STEPS}  (bar: spike +1, ring: spike -1, dashed: equilibrium)", xlim=(0.5, last + 1.5))
    axes.xaxis.set_major_locator(WHOLE)
    return figure


def image_figure(
    picture: torch.Tensor,
    maps: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    masked: str | None = None,
    frames: int = 7,
) -> Figure:
    """Maps over the patches of an image, at some of the steps, and those of the quantized network at the end.

    Args:
        picture: (H, W, 3 or 1), 0 to 1.
        maps: {what it is: (T, rows, columns)}, at least 0.
        expected: the same of the quantized network, (rows, columns).
        masked: which of the maps the picture is to be masked with, as in the paper's Figure 6.
    """
    steps = [index + 1 for index in evenly_spread(len(next(iter(maps.values()))), frames, ends=True)]
    titles = [*(f"T = {step}" for step in steps), "QANN"]
    figure = new_figure(1.1 * (len(titles) + 1) + 0.6, 1.25 * (len(maps) + bool(masked)) + 0.5)
    grid = figure.subplots(len(maps) + bool(masked), len(titles) + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("0.6")
    for axes in grid[:, 0]:
        axes.set_visible(False)
    grid[0, 0].set_visible(True)
    grid[0, 0].imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    grid[0, 0].set_title("input", fontsize=9)
    for row, (name, values) in enumerate(maps.items()):
        shown = [*(values[step - 1] for step in steps), expected[name]]
        top = max(float(values.max()), float(expected[name].max()), 1e-12)
        for axes, one in zip(grid[row, 1:], shown):
            image = axes.imshow(one.numpy(), cmap="gray", vmin=0, vmax=top, interpolation="nearest")
        bar = figure.colorbar(image, ax=list(grid[row, 1:]), shrink=0.85, aspect=12, pad=0.01)
        bar.ax.tick_params(labelsize=7)
        grid[row, 1].set_ylabel(name, fontsize=8)
    if masked:
        for axes, one in zip(grid[-1, 1:], [*(maps[masked][step - 1] for step in steps), expected[masked]]):
            mask = one / max(float(expected[masked].max()), 1e-12)
            large = torch.nn.functional.interpolate(mask[None, None].float(), picture.shape[:2], mode="nearest")
            axes.imshow((picture * large[0, 0, :, :, None]).clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        grid[-1, 1].set_ylabel("input, masked", fontsize=8)
    for axes, title in zip(grid[0, 1:], titles):
        axes.set_title(title, fontsize=9)
    return figure


def token_figure(
    tokens: Sequence[str], values: torch.Tensor, expected: torch.Tensor | None, label: str, most: int = 48
) -> Figure:
    """A value of each token after each step, from top to bottom, and in the quantized network below.

    Args:
        values: (T, tokens).
        expected: (tokens,), or None.
        label: what the values are, with their unit.
        most: tokens to show, from the first.
    """
    total, values = len(tokens), values[:, :most]
    tokens = tokens[:most]
    figure = new_figure(max(5.0, 1.6 + 0.3 * len(tokens)), min(8.0, 2.2 + 0.08 * len(values)))
    if expected is None:
        rows = [figure.subplots()]
    else:
        rows = list(figure.subplots(2, sharex=True, height_ratios=[max(6, len(values) / 3), 1]))
    top = max(1e-12, float(values.max()), 0.0 if expected is None else float(expected[:most].max()))
    look: dict[str, Any] = {"aspect": "auto", "cmap": "gray_r", "vmin": 0, "vmax": top, "interpolation": "nearest"}
    image = rows[0].imshow(values.numpy(), extent=(-0.5, len(tokens) - 0.5, len(values) + 0.5, 0.5), **look)
    rows[0].set_ylabel(STEPS)
    rows[0].yaxis.set_major_locator(WHOLE)
    if expected is not None:
        rows[1].imshow(expected[None, :most].numpy(), **look)
        rows[1].set_yticks([0], ["QANN"])
    # A dollar sign of a text is none of mathematics.
    rows[-1].set_xticks(range(len(tokens)), tokens, rotation=60, ha="right", fontsize=8, parse_math=False)
    rows[-1].set_xlabel("token" if len(tokens) == total else f"token: the first {most} of {total}")
    figure.colorbar(image, ax=rows, label=label)
    return figure


HATCHES = {  # (gray, hatch) of each kind of operation in `energy_figure`: neighbours differ in both
    "input": ("0.2", ""),
    "weights": ("0.75", ""),
    "attention": ("1.0", "////"),
    "bias and residual": ("0.45", ""),
    "LayerNorm": ("1.0", "...."),
    "softmax and tanh": ("0.85", "xxxx"),
    "neurons": ("0.6", "\\\\\\\\"),
}


def energy_figure(unit: str, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Energy of each network by kind of operation: joules, and shares of its own total.

    Args:
        unit: of the energies.
        rows: of `part_table`: a kind of operation a row ("" is its name), a network a column; "total" among them.
    """
    total = next(row for row in rows if row[""] == "total")
    networks = [name for name in total if name]
    figure = new_figure(8.5, 3.6)
    both = figure.subplots(1, 2, sharey=True)
    for axes, shares in zip(both, (False, True)):
        left = [0.0] * len(networks)
        for row in rows:
            if row[""] not in HATCHES:
                continue
            gray, hatch = HATCHES[row[""]]
            widths = [row[name] / (total[name] or 1.0) if shares else row[name] for name in networks]
            look: dict[str, Any] = {"color": gray, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
            axes.barh(networks, widths, 0.62, left=left, label=row[""], **look)
            left = [start + width for start, width in zip(left, widths)]
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    both[0].invert_yaxis()  # both have it
    for place, name in enumerate(networks):
        both[0].annotate(
            digits(total[name]), (total[name], place), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    both[0].set(xlabel=f"energy of an inference ({unit})", xlim=(0, 1.18 * max(total[name] for name in networks)))
    both[1].set(xlabel="share of the network's own total", xlim=(0, 1))
    both[1].xaxis.set_major_formatter(PercentFormatter(1))
    handles, names = both[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, handlelength=3, handleheight=1.2)
    return figure


def evenly_spread(length: int, count: int, ends: bool = False) -> list[int]:
    """At most `count` of the numbers below `length`, at even distances; with `ends`, both the first and the last."""
    if length <= count:
        return list(range(length))
    if ends:
        return [round(number * (length - 1) / (count - 1)) for number in range(count)]
    return [number * length // count for number in range(count)]


def short(name: str) -> str:
    """The name of a node without what all have in common."""
    return name.removeprefix("encoder.").replace("layers.", "").replace("layer.", "").removesuffix("_node")
