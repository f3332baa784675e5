"""Pictures."""

from pathlib import Path

import torch


def plot_accuracy_over_time(
    path: str | Path, curve: torch.Tensor, references: dict[str, float], equilibrium_step: torch.Tensor, title: str
) -> None:
    """Draw accuracy against time-steps, with a span for where samples reach equilibrium.

    Args:
        path: file to write; its suffix chooses the format.
        curve: (T,) accuracy of the SNN after each step, 0 to 1.
        references: accuracy of other networks, drawn as horizontal lines.
        equilibrium_step: (n,) steps at which the samples that got there reached equilibrium; may be empty.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install 'spikezip-hf[demo]'.") from error
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    steps = range(1, len(curve) + 1)
    axes.plot(steps, curve * 100, color="black", linewidth=2, label="SNN")
    for (name, value), style in zip(references.items(), ("--", ":", "-.")):
        axes.axhline(value * 100, color="tab:blue", linestyle=style, linewidth=1.5, label=f"{name} ({value:.2%})")
    if len(equilibrium_step):
        first, last = int(equilibrium_step.min()), int(equilibrium_step.max())
        axes.axvspan(first, last, color="0.85", label=f"samples reach equilibrium (T = {first} to {last})")
    axes.set(xlabel="time-steps T", ylabel="accuracy (%)", title=title, xlim=(1, len(curve)), ylim=(0, 102))
    axes.grid(color="0.92")
    axes.legend(loc="lower right", framealpha=1)
    figure.savefig(path, dpi=150)
