"""Pictures."""

from collections.abc import Mapping
from pathlib import Path


def plot_accuracy_over_time(path: str | Path, figures: Mapping, title: str) -> None:
    """Draw accuracy against time-steps (paper Fig. 5), with a span for where samples reach equilibrium.

    Args:
        path: file to write; its suffix chooses the format.
        figures: what `compare_twins` returned.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'spikezip-hf[demo]'.") from error
    settled = [int(step) for step in figures["equilibrium steps"]]
    curve = [100 * value for value in figures["accuracy per step"]]
    if len(curve) < figures["T"]:  # a little of what does not change any more
        curve += [curve[-1]] * 8
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(curve) + 1), curve, color="black", linewidth=2, label="SNN")
    references = [(row["network"], row["accuracy"]) for row in figures["rows"] if row["T"] == "-"]
    for (name, value), style in zip(references, ("--", ":")):
        axes.axhline(value * 100, color="tab:blue", linestyle=style, linewidth=1.5, label=f"{name} ({value:.2%})")
    if settled:
        first, last = min(settled), max(settled)
        axes.axvspan(first, last, color="0.85", label=f"samples reach equilibrium (T = {first} to {last})")
    axes.set(xlabel="time-steps T", ylabel="accuracy (%)", title=title, xlim=(1, len(curve)), ylim=(0, 102))
    axes.grid(color="0.92")
    axes.legend(loc="lower right", framealpha=1)
    # Without the version of matplotlib in it, the same figures give the same file.
    figure.savefig(path, dpi=150, metadata={"Software": None} if Path(path).suffix == ".png" else None)
