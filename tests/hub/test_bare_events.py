"""A spiking network of recordings and its processor, as remote code where the package is not."""

import json

import torch
import transformers
from packaging.version import Version

from spikezip_hf import SpikeViTForImageClassification
from tests.hub.bare import make_site, run_bare
from tests.models.test_event_vit import PROCESSOR, make_event_qann, recording

PROGRAM = """
import importlib.util, json
assert all(importlib.util.find_spec(absent) is None for absent in ("spikezip_hf", "datasets", "scipy"))
from transformers import AutoImageProcessor, AutoModelForImageClassification
processor = AutoImageProcessor.from_pretrained({folder!r}, trust_remote_code=True)
snn = AutoModelForImageClassification.from_pretrained({folder!r}, trust_remote_code=True)
output = snn(**processor({events!r}, return_tensors="pt"))
print(json.dumps([output.logits.tolist(), output.equilibrium_step.tolist()]))
"""


def test_remote_code(tmp_path):
    more = ["torchvision"] if Version(transformers.__version__) < Version("5.23") else []  # 5.17 insists on it
    site = make_site(tmp_path / "site", "pillow", *more)  # without pillow transformers has no image processors at all
    snn = SpikeViTForImageClassification.from_quantized(make_event_qann(weight_bits=8), time_steps=300)
    snn.save_pretrained(tmp_path / "snn", processing_class=PROCESSOR)
    events = {name: recording(0)[name].tolist() for name in "xypt"}
    program = PROGRAM.format(folder=str(tmp_path / "snn"), events=events)
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    logits, step = json.loads(run_bare(program, site, environment).splitlines()[-1])
    with torch.no_grad():
        here = snn(PROCESSOR(events, return_tensors="pt")["pixel_values"])
    # One scale a node and weights of 8 bits: the same integers, with kernels and without.
    assert torch.equal(torch.tensor(logits), here.logits)
    assert step == here.equilibrium_step.tolist()
