"""What calibration alone gives on real data: accuracy and seconds of each rule, with no training.

    SPIKEZIP_DATA=... .venv/bin/python benchmarks/post_training.py outputs/sst2_bert/ann sst2 > FILE.json

What `spikezip quantize` does, for each number of levels and each rule: 256 training samples calibrate, and both
networks are measured on the same test samples, evenly spread. Seconds are those of calibrating.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from itertools import product
from pathlib import Path

from spikezip_hf.recipes import stage
from spikezip_hf.recipes.inputs import DataArguments
from spikezip_hf.recipes.quantize import CalibrationArguments, quantize

LEVELS = (32, 16, 8)
RULES = (("mse", None), ("lsq", None), *(("percentile", share) for share in (99.0, 99.9, 99.99, 99.999)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ann", help="folder or Hub id of an ordinary network with ReLU")
    parser.add_argument("data_dir", help="folder of the data, or one inside SPIKEZIP_DATA")
    parser.add_argument("--limit", type=int, default=500, help="test samples")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS)
    parser.add_argument("--head-act", help="activation in the head of a text classifier, if not its own")
    options = parser.parse_args()
    rows = []
    for levels, (method, percentile) in product(options.levels, RULES):
        arguments = CalibrationArguments(
            quantization_levels=levels,
            method=method,
            percentile=percentile,
            limit=options.limit,
            head_act=options.head_act,
        )
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            found = quantize(options.ann, Path(folder), DataArguments(data_dir=options.data_dir), arguments)
        ann, qann = found["simulated"]["rows"]
        rows.append(
            {
                "levels": levels,
                "rule": arguments.rule(),
                "accuracy": qann["accuracy"],
                "ANN agrees": ann["agrees with QANN"],
                "seconds": found["seconds"],
            }
        )
        print(rows[-1], file=sys.stderr)
    about = {name: found[name] for name in ("data", "split", "scale_granularity")}
    record = {**stage.provenance(), **about, "samples": found["simulated"]["samples"], "head_act": options.head_act}
    print(json.dumps({**record, "ann": ann["accuracy"], "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
