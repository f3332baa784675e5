"""How many thresholds a node of a text encoder needs: accuracy right after calibration, with no training.

    .venv/bin/python benchmarks/outliers.py --network outputs/sst2_bert/ann --data sst2      # prints JSON

LayerNorms and MLP outputs of pretrained encoders have a few channels far larger than the others: one threshold for all
of a node then spends its levels on them. For 32 and 16 levels, each granularity of scales and method of calibration:
accuracy on the development set, with 256 training texts to calibrate. Beside it the largest channel of each kind of
node against the median one. The head keeps its tanh, so that only quantization is between the two networks.
"""

import argparse
import json
import re
from itertools import product

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import spikezip_hf
from spikezip_hf.analysis import accuracy
from spikezip_hf.conversion.ann import quantized_class
from spikezip_hf.conversion.calibration import FloatEngine
from spikezip_hf.recipes.convert import batches
from spikezip_hf.recipes.inputs import DataArguments, load_data, text_inputs

LEVELS = (32, 16)
GRANULARITIES = ("per_tensor", "mixed", "per_channel")
METHODS = ("mse", "lsq")


class ChannelEngine(FloatEngine):
    """Keeps the largest absolute value of every channel of every node."""

    def __init__(self) -> None:
        self.channels: dict[str, torch.Tensor] = {}

    def fire(self, node, current):
        x = super().fire(node, current)
        largest = x.detach().abs().flatten(0, -2).amax(0)
        if not node.name.endswith("probs_node"):
            self.channels[node.name] = torch.maximum(self.channels.get(node.name, largest), largest)
        return x


@torch.no_grad()
def answer(network, split: list[dict], **arguments) -> torch.Tensor:
    inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in split]
    return torch.cat([network.eval()(**batch, **arguments).logits for batch in inputs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", required=True, help="folder of a ReLU classifier, as training/ leaves it")
    parser.add_argument("--data", default="sst2", help="folder of its data, or the name of one inside SPIKEZIP_DATA")
    options = parser.parse_args()
    ann = AutoModelForSequenceClassification.from_pretrained(options.network)
    tokenizer = AutoTokenizer.from_pretrained(options.network)
    arguments = DataArguments(local_name=options.data)
    data, collate = text_inputs(load_data(arguments, is_text=True), tokenizer, arguments)
    train, dev = data["train"], list(batches(data["validation"], collate, 16))
    calibration = list(batches(train.select([row * len(train) // 256 for row in range(256)]), collate, 16))
    labels = torch.cat([batch["labels"] for batch in dev])

    rows = []
    for levels, granularity, method in product(LEVELS, GRANULARITIES, METHODS):
        qann = (
            quantized_class(ann)
            .from_ann(ann, quantization_levels=levels, scale_granularity=granularity, head_act="tanh")
            .calibrate(calibration, method)
        )
        rows.append(
            {
                "levels": levels,
                "scale_granularity": granularity,
                "method": method,
                "accuracy": round(accuracy(answer(qann, dev), labels), 4),
            }
        )
    engine = ChannelEngine()
    answer(qann, calibration, engine=engine)
    kinds: dict[str, list[float]] = {}
    for name, channels in engine.channels.items():
        kind = re.sub(r"^encoder\.layer\.\d+\.", "", name)
        kinds.setdefault(kind, []).append(round(float(channels.max() / channels.median().clamp_min(1e-9)), 1))
    print(
        json.dumps(
            {
                "versions": {"torch": torch.__version__, "spikezip_hf": spikezip_hf.__version__},
                "ann": round(accuracy(answer(ann, dev), labels), 4),
                "rows": rows,
                "largest channel over median channel, by layer": kinds,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
