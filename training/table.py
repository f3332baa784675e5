"""The table of RESULTS.md, from the files in training/results/: one line a network."""

import json
from pathlib import Path

# Name, and what TF-IDF (n-grams) or, for images, raw pixels and logistic regression reach on the test set.
DATA = {
    "sst2": ("SST-2", "81.5"),
    "sst5": ("SST-5", "41.1"),
    "mr": ("MR", "79.1"),
    "chnsenticorp_htl": ("hotel reviews", "88.4"),
    "fashion_mnist": ("Fashion-MNIST", "83.4"),
    "cifar10": ("CIFAR-10", "-"),
    "nmnist_small-10-frames": ("N-MNIST, 1000 recordings", "90"),
}
NETWORKS = {"bert": "BERT", "roberta": "RoBERTa", "vit": "ViT", "swin": "Swin"}


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def line(run: dict) -> tuple:
    """Sorting key, and the cells of one run."""
    earlier = "test" in run  # a file of the earlier script, which simulated the whole test set
    figures = run["test"] if earlier else run["simulated"]
    accuracy = {row["network"]: row["accuracy"] for row in figures["rows"] if row["network"] != "SNN"}
    whole = accuracy if earlier else run["accuracy on the whole split"]
    levels = run["levels"] if earlier else run["quantization_levels"]
    bits = run.get("weight_bits")
    epochs = [
        float(stage["epochs"] if earlier else stage["settings"].get("num_train_epochs", 3))
        for stage in (run["ReLU fine-tuning"], run["quantization-aware training"])
    ]
    name, floor = DATA[run["data"]]
    snn = [f"{100 * row['accuracy']:.1f}" for row in figures["rows"] if row["network"] == "SNN"]
    t_eq = figures["T_eq"]
    cells = [
        name,
        floor,
        NETWORKS[run["architecture"]],
        f"{epochs[0]:g} + {epochs[1]:g}",
        str(levels),
        str(bits or 32),
        percent(whole["ANN"]),
        percent(whole["QANN"]),
        " / ".join(snn),
        f"{100 * accuracy['QANN']:.1f}",
        f"{t_eq['mean']:.0f} / {t_eq['max']}",
        f"{figures['spikes per neuron']:.1f}",
        f"{figures['at equilibrium']} of {figures['samples']}" if figures["exact"] else "not exact",
    ]
    return (list(DATA).index(run["data"]), run["architecture"], -(bits or 32), -levels, epochs), cells


def main() -> None:
    header = ["data", "floor", "network", "epochs", "levels", "weight bits", "ANN", "QANN"]
    header += ["SNN at T = 16 / 32 / 64 / 128 / T_eq", "QANN there", "T_eq, mean / max", "spikes", "exact"]
    print("|", " | ".join(header), "|")
    print("|" + "---|" * len(header))
    found = [json.loads(path.read_text()) for path in Path(__file__).parent.glob("results/*.json")]
    runs = [run for run in found if "ReLU fine-tuning" in run]  # others are of another look at one of these networks
    for _, cells in sorted(line(run) for run in runs if run.get("head_act", "relu") == "relu"):
        print("|", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
