"""A report as one HTML file: everything is in it, nothing is fetched, no script runs. All text is escaped here."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spikezip_hf.analysis.energy import fitting_unit
from spikezip_hf.analysis.energy_account import part_table
from spikezip_hf.analysis.time_course import DEFINITIONS, reported_steps

OPTIONAL_TABLES = (
    *("energy", "operations", "operations_by_layer", "operations_by_module"),
    *("simulation_costs", "training_costs"),
)
MARK = "spikezip report"  # the entry of report.json that says what it is
STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --line: #c8c8c8; --soft: #f3f3f3; --dim: #555 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --back: #161616; --line: #444; --soft: #232323; --dim: #aaa }
}
body { color: var(--text); background: var(--back); font: 16px/1.5 system-ui, sans-serif; margin: 0 }
main { max-width: 60rem; margin: 0 auto; padding: 1rem 1.25rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line) }
p.lead, figcaption, caption, td.says { color: var(--dim) }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .25rem 0 }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line) }
td.number, th.number { text-align: right }
td.number, td.name { white-space: nowrap }
td.text { min-width: 15rem }
td { overflow-wrap: anywhere }
tr.total td { font-weight: bold; border-top: 1px solid var(--text) }
table.facts th { width: 11rem }
table.facts td { min-width: 6.5rem }
table.facts td.says { min-width: 13rem }
figure { margin: 1.25rem 0; break-inside: avoid }
figure img { display: block; max-width: 100%; height: auto; background: #fff; padding: .5rem; box-sizing: border-box;
  border: 1px solid var(--line); border-radius: 4px }
figcaption { font-size: .875rem; padding-top: .4rem }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; font-size: .8rem; white-space: pre-wrap }
blockquote { margin: .75rem 0; padding: .25rem .9rem; border-left: 3px solid var(--line); overflow-wrap: anywhere }
.certificate { background: var(--soft); border-left: 4px solid var(--text); padding: .6rem .9rem; margin: 1rem 0 }
@media print {
  :root { --text: #000; --back: #fff; --line: #bbb; --soft: #fff; --dim: #333 }
  main { max-width: none; padding: 0 } body { font-size: 10pt } tr { break-inside: avoid } h2 { break-after: avoid }
  table { font-size: 8pt } td.text { min-width: 0 } .wide { overflow: visible }
}
"""
SHARES = {"accuracy", "agreement", "share at equilibrium", "needless spikes", "chance"}
SHARES |= {"QANN accuracy", "final accuracy", "final agreement"}


def shown(name: str, value: Any) -> str:
    """A value as text: shares in percent, other numbers with three digits behind the point."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in SHARES:
        return f"{100 * value:.2f} %"
    if isinstance(value, float) and (not value or abs(value) >= 1000):
        return f"{value:,.0f}"
    if isinstance(value, float) and value and not 0.001 <= abs(value) < 100:
        return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2g}"
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one:g}" if is_number(one) else f"{key} {one}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(shown("", one) for one in value)
    return str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(name: str, value: Any, right: bool) -> str:
    text = shown(name, value)
    # A name of a node is not to be broken, nor are a few words; a long word of some text is.
    kind = "number" if right else "text" if len(text) > 56 else "" if " " in text and len(text) > 24 else "name"
    return f"<td{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</td>"


def rows_table(rows: Sequence[Mapping[str, Any]], caption: str, total: str | None = None) -> str:
    """A table with the columns of its rows, in order; those of numbers stand to the right.

    Args:
        total: what the first cell of rows that sum up the others says.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    right = {name for name in columns if any(is_number(row.get(name)) for row in rows)}
    head = "".join(
        f'<th scope="col"{" class=" + chr(34) + "number" + chr(34) if name in right else ""}>{escape(str(name))}</th>'
        for name in columns
    )
    body = "\n".join(
        f"<tr{' class=' + chr(34) + 'total' + chr(34) if total and row.get(columns[0]) == total else ''}>"
        + "".join(cell(name, row.get(name), name in right) for name in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def facts_table(facts: Iterable[tuple[str, Any, str]], caption: str) -> str:
    """A table of names, values, and what they mean, if that is said."""
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(shown(name, value))}</td>'
        + (f'<td class="says">{escape(says)}</td>' if says else "")
        + "</tr>"
        for name, value, says in facts
    )
    head = f'<table class="facts"><caption>{escape(caption)}</caption>'
    return f'<div class="wide">{head}\n<tbody>\n{body}\n</tbody></table></div>'


def picture(path: Path, caption: str) -> str:
    """An SVG file within the page; as an image, so that its names meet no others and it can run nothing."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def quotation(text: str) -> str:
    return f"<blockquote>{escape(text)}</blockquote>"


def paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={chr(34)}{kind}{chr(34)}' if kind else ''}>{escape(text)}</p>"


def code(text: str, summary: str) -> str:
    """Text as it is, to be unfolded."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def page(title: str, lead: str, sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    """The whole file, of sections with their heading and their blocks of HTML."""
    body = "\n".join(
        f"<section>\n<h2>{escape(heading)}</h2>\n" + "\n".join(blocks) + "\n</section>"
        for heading, blocks in sections
        if blocks
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{paragraph(lead, 'lead')}\n{body}\n</main>\n</body>\n</html>\n"
    )


def energy_blocks(content: Mapping[str, Any], figure: Sequence[str]) -> list[str]:
    """What is said of operations and energy: what comes out, networks beside one another, kinds, layers, meanings."""
    if "energy" not in content["accounts"]:
        return []
    account, means = content["accounts"]["energy"], content["accounts"]["energy"]["definitions"]
    unit, parts = part_table(content["energy"])
    counted = account["counted"]
    numbers = [(name, counted[name], means.get(name, "")) for name in ("samples", "at equilibrium", "steps")]
    numbers += [(name, counted[name], means[name]) for name in ("neurons", "spikes per neuron")]
    told = [(name, "", text) for name, text in means.items() if name not in counted]
    prices = ", ".join(f"{name} {value:g}" for name, value in account["prices"].items())
    return [
        *(paragraph(text) for text in account["says"]),
        rows_table(parts, f"Energy of an inference by kind of operation, {unit}", total="total"),
        *figure,
        facts_table(
            [(name, text, "") for name, text in account["networks"].items()], "What is held against what, and how"
        ),
        facts_table(numbers, "What was counted"),
        rows_table(
            [
                {name: value for name, value in row.items() if name != "means"}
                for row in in_unit(content["operations"])
            ],
            "Operations by kind, a sample: of the spiking network over its steps, and of a dense network in one pass",
        ),
        facts_table([(row["kind"], row["means"], "") for row in content["operations"]], "What one of each kind is"),
        rows_table(
            in_unit(content["operations_by_layer"]),
            "By layer: operations of the spiking network, and energy (module by module: operations_by_module.csv)",
        ),
        facts_table([*power_facts(account["power"]), *((name, text, "") for name, _, text in told)], "What it means"),
        code(prices.replace(", ", "\n"), "Prices (45 nm, Horowitz 2014, unless others were given)"),
    ]


def power_facts(power: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    return [(f"power: {name}", f"{value:.3g}", "") for name, value in power.items()]


def in_unit(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with their columns "... (J)" in a unit that fits."""
    columns = [name for name in rows[0] if name.endswith(" (J)")]
    scale, unit = fitting_unit(max(row[name] for row in rows for name in columns))
    return [
        {name.replace("(J)", f"({unit})"): value / scale if name in columns else value for name, value in row.items()}
        for row in rows
    ]


def cost_blocks(content: Mapping[str, Any]) -> list[str]:
    """Time and memory of the simulation, hours and energy of training: those that there are."""
    blocks = []
    captions = {
        "simulation_costs": "Simulating {samples} samples on {device}, {threads} threads, best of {runs of each} runs",
        "training_costs": "Training on record",
    }
    for name, caption in captions.items():
        if name in content["accounts"]:
            about = content["accounts"][name]
            blocks += [paragraph(text) for text in about.get("says", ())]
            blocks.append(rows_table(content[name], caption.format(**about["about"]), total="all of these"))
            blocks.append(facts_table([(key, text, "") for key, text in about["definitions"].items()], ""))
    return blocks


def html(content: Mapping[str, Any], pictures: Path) -> str:
    """The report as a page; `pictures` is the folder of its figures."""
    course, sample = content["time course"], content["sample"]

    def shown(*names: str) -> list[str]:
        return [picture(pictures / f"{name}.svg", text) for name, text in content["figures"].items() if name in names]

    steps = [content["steps"][step - 1] for step in reported_steps(len(content["steps"]))]
    slowest = sorted(content["samples"], key=lambda row: (row["exact"], -row["T_eq"]))[:12]
    facts_of = content["network"]["facts"]
    numbers = [(name, course[name], text) for name, text in content["definitions"].items() if name != "certificate"]
    close = []
    if sample:
        close = [quotation(sample["what"])] if sample["what"] else []
        answers = sample["answer after each step"]
        changes = [f"{said} from T = {t + 1}" for t, said in enumerate(answers) if t == 0 or said != answers[t - 1]]
        close.append(
            facts_table(
                [
                    ("Answers", "; ".join(changes), ""),
                    ("Answer of the quantized network", sample["answer of the quantized network"], ""),
                    ("T_eq", sample["T_eq"] if sample["T_eq"] > 0 else "not proven", ""),
                ],
                "This sample, simulated alone",
            )
        )
        close += shown("image", "heads", "tokens", "distance", "raster")
    others = "".join(f"{name}.csv, " for name in OPTIONAL_TABLES if name in content)
    sections = [
        (
            "What was measured",
            [
                f'<div class="certificate">{paragraph("Certificate: " + course["certificate"] + ".")}'
                f"{paragraph(DEFINITIONS['certificate'], 'lead')}</div>",
                facts_table(numbers, "Numbers, and how each is defined"),
            ],
        ),
        (
            "Of which network",
            [facts_table([(k, v, "") for k, v in {**content["about"], **facts_of}.items() if v is not None], "")],
        ),
        ("Accuracy over time", [*shown("accuracy"), rows_table(steps, "After T time-steps (all steps: steps.csv)")]),
        (
            "Equilibrium",
            [
                *shown("equilibrium"),
                rows_table(slowest, "The samples that took longest, those not exact first (all samples: samples.csv)"),
            ],
        ),
        ("Spikes", [*shown("firing_rate"), rows_table(content["nodes"], "Node by node, from input to output")]),
        ("One sample, closely", close),
        ("Operations and energy", energy_blocks(content, shown("energy"))),
        ("Time, memory and training", cost_blocks(content)),
        (
            "Files",
            [
                paragraph(
                    "In the folder of this page: report.json (all numbers), steps.csv, nodes.csv, samples.csv, "
                    "anytime.parquet (what each sample's answer would be if it were stopped after each step), "
                    f"{others}the figures as PNG and SVG."
                ),
                code(json.dumps(content["network"]["config"], indent=1, ensure_ascii=False), "Config of the network"),
            ],
        ),
    ]
    lead = (
        f"spikezip_hf {content[MARK]}. T counts time-steps from 1. QANN: the quantized network; SNN: its spiking twin."
    )
    return page(content["title"], lead, sections)
