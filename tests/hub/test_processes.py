"""Two processes save one model: as copies, and in shards of FSDP. What is written is whole, and of the model."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageClassification

from spikezip_hf import QuantViTForImageClassification
from tests.conftest import make_images, make_qann

PROGRAM = """
import sys
import torch, torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from tests.conftest import make_qann

kind, folder = sys.argv[1:]
dist.init_process_group("gloo")
qann, first = make_qann(), dist.get_rank() == 0
if kind == "copies":
    qann.save_pretrained(folder)  # on every process, as transformers allows
else:
    if kind == "fsdp2":
        from torch.distributed.fsdp import fully_shard

        fully_shard(qann)
        wrapped = qann
    else:
        from torch.distributed.fsdp import FullyShardedDataParallel

        wrapped = FullyShardedDataParallel(qann, device_id=torch.device("cpu"), use_orig_params=True)
    whole = get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    qann.save_pretrained(folder, state_dict=whole if first else None, is_main_process=first)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copies", "fsdp1", "fsdp2"])
def test_saved_by_two_processes(kind, tmp_path):
    # Results lie there, whose digest is to be compared: of the whole network, which no process has.
    (tmp_path / "model").mkdir()
    figures = {"samples": 1, "rows": [{"network": "QANN", "T": "-", "accuracy": 0.5}]}
    results = {"data": "words", "split": "test", "network_digest": "of another", "simulated": figures}
    (tmp_path / "model" / "results.json").write_text(json.dumps(results))
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    result = subprocess.run(
        [*launch, str(tmp_path / "program.py"), kind, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=300,
        env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "PATH": ""},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    qann = make_qann().eval()
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"modeling_spike_vit.py", "configuration_spike_vit.py", "README.md"} <= names
    assert not any(name.startswith("_") for name in names)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| Class | `QuantViTForImageClassification` |" in card
    assert "17.0k parameters" in card
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    assert type(loaded) is QuantViTForImageClassification
    assert loaded.config.auto_map == qann.config.auto_map
    with torch.no_grad():
        images = make_images(qann.config, 3)
        assert torch.equal(loaded(images).logits, qann(images).logits)
