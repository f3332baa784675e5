"""A watched input as pieces of HTML: what is drawn once for an input, and what is written anew for each step.

Figures are drawn once, by `figures`. What of them has not happened yet is veiled, by boxes whose edge follows the CSS
variable --step, which the piece of each step (`now`) sets: so a slider needs no drawing. All text is escaped here.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch

from spikezip_hf.analysis.figures import STEPS, WHOLE, Figure, new_figure, raster_figure, rate_map
from spikezip_hf.analysis.page import shown
from spikezip_hf.analysis.watching import Watched

STYLE = """
.watch { color: var(--body-text-color, #1a1a1a); font-variant-numeric: tabular-nums; line-height: 1.45 }
.watch p { margin: .2rem 0 } .watch .dim { opacity: .72 } .watch .large { font-size: 1.15rem }
.watch { overflow-x: auto }
.watch table { border-collapse: collapse; width: 100%; font-size: .875rem; border: 0 !important; margin: 0 }
.watch tr, .watch thead, .watch tbody { border: 0 !important }
.watch td:first-child { min-width: 5rem }
.watch th, .watch td { text-align: left; padding: .2rem .6rem .2rem 0 !important; vertical-align: middle;
  border: 0 !important; border-bottom: 1px solid #8884 !important; overflow-wrap: anywhere; font-weight: normal }
.watch th.number, .watch td.number { text-align: right; white-space: nowrap }
.watch td.wide { width: 34%; min-width: 3rem } .watch caption { text-align: left; opacity: .72; padding-bottom: .2rem }
.watch .bar { height: .8rem; background: currentColor; min-width: 1px }
.watch .bar.hollow { background: none; border: 1px solid currentColor; height: .5rem; margin-top: 2px }
.watch .drawn { position: relative; background: #fff; border: 1px solid #8884; border-radius: 4px; overflow: hidden }
.watch .drawn img { display: block; width: 100%; height: auto; margin: 0 }
.watch .veil { position: absolute; background: #ffffffd0; border-left: 2px solid #000 }
.watch .facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .9rem; margin: 0 }
.watch .facts dt { opacity: .72 } .watch .facts dd { margin: 0; overflow-wrap: anywhere }
.watch .error { border-left: 4px solid #b00020; padding: .5rem .8rem; background: #b0002018 }
.watch .tokens { display: flex; flex-wrap: wrap; gap: .35rem; margin: .3rem 0 }
.watch .token { border: 1px solid #8886; border-radius: 4px; padding: .1rem .35rem; min-width: 2.6rem;
  text-align: center; font-size: .85rem; overflow-wrap: anywhere }
.watch .token .tube { display: flex; align-items: flex-end; justify-content: center; gap: 2px; height: 2.6rem }
.watch .token .tube i { display: block; width: .6rem; background: currentColor; min-height: 1px }
.watch .token .tube i.hollow { background: none; border: 1px solid currentColor; box-sizing: border-box }
.watch .maps { display: flex; flex-wrap: wrap; gap: .8rem; margin: .3rem 0 }
.watch figure { margin: 0 } .watch figcaption { font-size: .8rem; opacity: .72; margin-bottom: .15rem }
.watch .maps img { width: 8.5rem; height: 8.5rem; image-rendering: pixelated; border: 1px solid #8886; margin: 0;
  object-fit: fill; background: #000 }
.watch .key i { display: inline-block; width: .7rem; height: .7rem; background: currentColor }
.watch .key i.hollow { background: none; border: 1px solid currentColor }
"""
KEY = '<span class="key"><i></i> SNN now &nbsp; <i class="hollow"></i> QANN</span>'


def piece(content: str) -> str:
    return f'<div class="watch">{content}</div>'


def problem(text: str) -> str:
    """What was wrong with an input."""
    return piece(f'<p class="error" role="alert">{escape(text)}</p>')


def facts(watched: Watched) -> str:
    """The run in numbers."""
    told = watched.facts()
    settled = f"{told['T_eq']} steps" if told["T_eq"] else f"not reached in {watched.time_steps} steps"
    rows = {
        "Answer of the QANN": told["QANN answer"],
        "Answer of the SNN": f"{told['SNN answer']}, the final one from T = {told['final answer from T']}",
        "T_eq": settled,
        "Logits at the end": "equal to the QANN's, bit for bit" if told["logits equal"] else "not proven equal",
        "Spikes": f"{told['spikes']:,}, fired by {told['neurons']:,} neurons",
        "Spikes per neuron": f"{told['spikes per neuron']:.2f}",
    }
    return piece(
        '<dl class="facts">' + "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in rows.items()) + "</dl>"
    )


def now(watched: Watched, step: int) -> str:
    """The step in a line or two; and what moves the veils to it."""
    frame = watched.frame(step)
    fired, neurons = int(frame.spikes.sum()), int(watched.seen.neurons.sum())
    if frame.settled:
        state = "At equilibrium: nothing moves any more, and the logits are the QANN's."
    elif step == len(watched):
        state = f"Not at equilibrium after all {step} steps."
    else:
        state = "Not at equilibrium yet."
    return piece(
        f"<style>.watch {{ --step: {step} }}</style>"
        f'<p class="large">T = {step} of {len(watched)}: <b>{escape(frame.answer)}</b> '
        f"({100 * float(frame.probabilities.max()):.1f} %)</p>"
        f"<p>{fired:,} spikes in this step, {shown('', fired / neurons)} per neuron; "
        f'{int(frame.so_far.sum()) / neurons:.2f} per neuron so far. <span class="dim">{state}</span></p>'
    )


def answers(watched: Watched, step: int) -> str:
    """Both networks' logits and probabilities."""
    rows = watched.answer_rows(step)
    body = "".join(
        f"<tr><td>{escape(row['class'])}</td>"
        f'<td class="wide"><div class="bar" style="width: {100 * row["SNN probability"]:.2f}%"></div>'
        f'<div class="bar hollow" style="width: {100 * row["QANN probability"]:.2f}%"></div></td>'
        f'<td class="number">{100 * row["SNN probability"]:.1f} %</td>'
        f'<td class="number">{row["SNN logit"]:.3f}</td>'
        f'<td class="number">{100 * row["QANN probability"]:.1f} %</td>'
        f'<td class="number">{row["QANN logit"]:.3f}</td></tr>'
        for row in rows
    )
    total = len(watched.class_names)
    some = "" if len(rows) == total else f" (the QANN's likeliest {len(rows)} of {total} classes)"
    numbers = "".join(f'<th scope="col" class="number">{name}</th>' for name in ("SNN", "logit", "QANN", "logit"))
    return piece(
        f"<table><caption>Probabilities: {KEY}{some}</caption>"
        f'<thead><tr><th scope="col">class</th><th></th>{numbers}</tr></thead><tbody>{body}</tbody></table>'
    )


def attention(watched: Watched, step: int) -> str:
    """Attention of what the head reads to each token, or over the patches of the image; beside it the QANN's."""
    values, expected = watched.frame(step).attention, watched.expected_attention
    # One scale for all steps, so that they can be compared.
    top = max(float(watched.attention.max()), float(expected.max()), 1e-12)
    if watched.tokens is not None:
        tokens = "".join(
            f'<div class="token" title="SNN {value:.3f}, QANN {wanted:.3f}"><div class="tube">'
            f'<i style="height: {100 * value / top:.1f}%"></i>'
            f'<i class="hollow" style="height: {100 * wanted / top:.1f}%"></i></div>{escape(token)}</div>'
            for token, value, wanted in zip(watched.tokens, values.tolist(), expected.tolist())
        )
        what = "Attention of the first token in the last layer, mean over heads, accumulated"
        return piece(f'<p class="dim">{what}: {KEY}</p><div class="tokens">{tokens}</div>')
    assert watched.grid is not None
    first = watched.config.prefix_tokens  # class tokens are no patches
    pictures = {
        "input": watched.picture,
        f"SNN after {step} steps": values[first:].view(watched.grid) / top,
        "QANN": expected[first:].view(watched.grid) / top,
    }
    maps = "".join(
        f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="{png(pixels)}"></figure>'
        for name, pixels in pictures.items()
        if pixels is not None
    )
    reads = "patches" if watched.config.pooling == "mean" else "class token"
    what = f"Attention of the {reads} in the last layer, mean over heads, accumulated; white is most"
    return piece(f'<p class="dim">{what}</p><div class="maps">{maps}</div>')


def nodes(watched: Watched, step: int) -> str:
    """Spikes of each node."""
    rows = watched.node_rows(step)
    top = max(float(watched.firing_rate.max()), 1e-12)
    head = "".join(
        f'<th scope="col"{"" if name == "node" else " class=number"}>{name}</th>' for name in [*rows[0], ""]
    )
    body = "".join(
        f"<tr><td>{escape(row['node'])}</td>"
        + "".join(f'<td class="number">{shown(name, row[name])}</td>' for name in list(row)[1:])
        + f'<td style="width: 22%"><div class="bar" style="width: {100 * row["firing rate"] / top:.1f}%"></div></td>'
        for row in rows
    )
    caption = f"In step {step}. Firing rate: spikes per neuron in the step; the longest bar is {top:.2f}"
    return piece(f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def png(pixels: torch.Tensor) -> str:
    """(H, W), or (H, W, 3 or 1), 0 to 1, as a PNG within the page."""
    from PIL import Image

    pixels = (pixels.clamp(0, 1) * 255).round().byte()
    file = io.BytesIO()
    Image.fromarray((pixels[..., 0] if pixels.shape[2:] == (1,) else pixels).numpy()).save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Drawn:
    """A figure over time, as a PNG, and where in it time is.

    Attributes:
        source: URL of the PNG, which holds it.
        boxes: (left, top, right, bottom) of its axes, in percent of width and height from its upper left corner.
        limits: (first, last) values of their horizontal axis.
    """

    source: str
    boxes: tuple[tuple[float, float, float, float], ...]
    limits: tuple[float, float]
    caption: str

    def html(self) -> str:
        first, last = self.limits
        veils = []
        for left, top, right, bottom in self.boxes:
            each = (right - left) / (last - first)  # percent per step
            edge = f"calc({left - each * (first - 0.5):.4f}% + {each:.5f}% * var(--step, {last}))"
            place = f"top: {top:.3f}%; height: {bottom - top:.3f}%; right: {100 - right:.3f}%"
            veils.append(f'<div class="veil" style="left: min({right:.3f}%, {edge}); {place}"></div>')
        return (
            f'<figure><figcaption>{escape(self.caption)}</figcaption><div class="drawn">'
            f'<img alt="{escape(self.caption)}" src="{self.source}">{"".join(veils)}</div></figure>'
        )


def drawn(figure: Figure, caption: str, axes: Sequence | None = None) -> Drawn:
    """A figure whose axes (all of them by default) share a horizontal one, of time-steps."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    axes = figure.axes if axes is None else axes
    boxes = []
    for one in axes:
        place = one.get_position()
        boxes.append((100 * place.x0, 100 * (1 - place.y1), 100 * place.x1, 100 * (1 - place.y0)))
    source = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return Drawn(source, tuple(boxes), tuple(axes[0].get_xlim()), caption)


def course(watched: Watched) -> str:
    """Logits and spikes in time."""
    return piece(
        drawn(course_figure(watched), "Logits, dotted: the QANN's; and spikes per neuron in each step").html()
    )


def rates(watched: Watched) -> str:
    """Firing rate of each node in time."""
    figure = rate_map(watched.firing_rate, watched.node_names)
    return piece(drawn(figure, "Firing rate of each node in each step", figure.axes[:1]).html())


def raster(watched: Watched) -> str:
    """Spikes of some neurons in time."""
    figure = raster_figure(watched.seen, watched.raster_nodes)
    return piece(drawn(figure, "Spikes of some neurons of the first node, the middle one and the last").html())


def course_figure(watched: Watched, most: int = 4) -> Figure:
    """Logits of the classes that the quantized network finds likeliest, and firing rate, against time."""
    figure = new_figure(7.5, 4)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[2.2, 1])
    steps = range(1, len(watched) + 1)
    best = watched.seen.expected_logits.argsort(descending=True, stable=True)[:most].tolist()
    looks = [("black", "-", 2.0), ("0.45", "--", 1.5), ("0.3", "-.", 1.2), ("0.6", "-", 1.2)]
    for number, (color, style, width) in zip(best, looks):
        logits = watched.seen.logits_per_step[:, number].tolist()
        name = watched.class_names[number].replace("$", r"\$")  # a dollar sign is none of mathematics
        upper.plot(steps, logits, color=color, linestyle=style, linewidth=width, label=f"{name[:24]}")
        upper.axhline(float(watched.seen.expected_logits[number]), color=color, linestyle=":", linewidth=1)
    upper.set(ylabel="logit")
    upper.grid(color="0.93")
    upper.set_axisbelow(True)
    figure.legend(loc="outside upper left", ncols=most, fontsize=8, frameon=False)
    fired = watched.seen.spikes.sum(1) / float(watched.seen.neurons.sum())
    lower.bar(steps, fired.tolist(), width=0.9, color="0.55", edgecolor="black", linewidth=0.4)
    lower.set(xlabel=STEPS, ylabel="spikes per\nneuron", xlim=(0.5, len(watched) + 0.5))
    lower.xaxis.set_major_locator(WHOLE)
    return figure
