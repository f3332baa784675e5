"""Two processes through accelerate: the same scales on both, the loss curve of one with the same total batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.conftest import make_qann, make_swin_qann, make_text_qann

FOLDER = Path(__file__).parents[2] / "training" / "accelerate"

PROGRAM = """
import json, os, sys
import torch
from spikezip_hf import QATTrainer, QuantViTForImageClassification
from tests.conftest import make_ann
from tests.training.common import make_args, make_data

folder, batch = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
ann = make_ann(dtype=torch.float64)
qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=8)
data = [{**x, "pixel_values": x["pixel_values"].double()} for x in make_data(ann.config, 48)]
args = make_args(
    folder, per_device_train_batch_size=batch, num_train_epochs=2, logging_steps=1, eval_strategy="epoch",
    snn_eval_every=1, snn_eval_time_steps=[150], snn_eval_samples=11, learning_rate=3e-3, max_grad_norm=0.0,
    hidden_state_weight=0.5, ddp_backend="gloo" if "WORLD_SIZE" in os.environ else None,
)
teacher = make_ann(seed=5, dtype=torch.float64)
trainer = QATTrainer(qann, args, teacher_model=teacher, train_dataset=data, eval_dataset=data)
trainer.train()
scales = torch.cat([node.scale.detach() for node in qann.nodes]).tolist()
record = {"scales": scales, "log": trainer.state.log_history, "processes": args.world_size}
with open(f"{folder}/rank{args.process_index}.json", "w") as file:
    json.dump(record, file)
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What each process of a run by one, and of a run by two, has to say."""
    found = {}
    for processes, batch in ((1, 8), (2, 4)):
        folder = tmp_path_factory.mktemp(f"by{processes}")
        (folder / "program.py").write_text(PROGRAM)
        config = FOLDER / "cpu_2_processes.yaml"
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command = [
            *(launch if processes == 2 else [sys.executable]),
            str(folder / "program.py"),
            str(folder),
            str(batch),
        ]
        root = FOLDER.parents[1]
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment(root), timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
        assert all(record["processes"] == processes for record in found[processes])
    return found


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_both_have_the_same_scales(records):
    first, second = records[2]
    assert first["scales"] == second["scales"]


@pytest.mark.slow
def test_scales_and_losses_are_those_of_one_process(records):
    """In float64, and all but equal: sums are added up in another order, soft losses are in float32."""
    assert torch.allclose(torch.tensor(records[2][0]["scales"]), torch.tensor(records[1][0]["scales"]), rtol=1e-4)
    for name in ("loss", "hard_label_loss", "soft_label_loss", "hidden_state_loss"):
        curves = [[float(e[name]) for e in records[count][0]["log"] if "loss" in e] for count in (1, 2)]
        assert len(curves[0]) == len(curves[1]) == 12
        assert curves[0] == pytest.approx(curves[1], rel=1e-4), name


@pytest.mark.slow
def test_the_spiking_network_is_evaluated_once_over_all(records):
    answers = [
        [e["eval_snn_T150_accuracy"] for e in records[count][0]["log"] if "eval_snn_T150_accuracy" in e]
        for count in (1, 2)
    ]
    assert len(answers[0]) == 2
    assert answers[0] == answers[1]
    assert all(round(value * 11, 6) == round(value * 11) for value in answers[0])  # of 11 samples, none twice


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_shipped_configs(path):
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.distributed_type.value == written["distributed_type"]
    assert config.num_processes == written["num_processes"]


def test_fsdp_wraps_classes_that_there_are():
    """accelerate looks for them by the names of the classes that a network's modules are of."""
    text = (FOLDER / "fsdp.yaml").read_text()
    names = yaml.safe_load(text)["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    networks = [make_qann(), make_swin_qann(), make_text_qann("bert")]
    vit, *others = ({type(module).__name__ for module in network.modules()} for network in networks)
    assert set(names) <= vit
    for name, there in zip(("SwinLayer", "TextLayer"), others, strict=True):
        assert name in there
        assert f"{name} for" in text
