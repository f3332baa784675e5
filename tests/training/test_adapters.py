"""LoRA on a Quant model: adapters and scales are trained, saved and merged, and the result converts exactly."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from spikezip_hf import QATTrainer, QuantBertForSequenceClassification, scale_modules, verify_equivalence
from spikezip_hf.auto import spiking_class
from tests.conftest import (
    make_ann,
    make_images,
    make_qann,
    make_text_ann,
    make_text_qann,
    make_texts,
    spiking_twin,
)
from tests.models.test_event_vit import frames_of, make_event_qann
from tests.training.common import make_args, make_data, make_text_data, text_collator

# PEFT 0.21 asks transformers 5.23 by an old name: theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

TARGETS = {"vit": ["q_proj", "v_proj", "fc1"], "bert": ["query", "value", "dense"]}


def base(architecture):
    return make_qann() if architecture == "vit" else make_text_qann("bert", granularity="mixed")


def make(architecture):
    """A Quant model, one with adapters, and what it is trained and asked with."""
    qann = base(architecture)
    if architecture == "vit":
        teacher = make_ann(seed=5)
        data, collate = make_data(qann.config), None
        batch = {"pixel_values": make_images(qann.config, 4)}
    else:
        teacher = make_text_ann("bert", seed=5)
        data, collate = make_text_data(qann.config), text_collator(qann.config)
        batch = make_texts(qann.config, [4, 9, 6])
    lora = LoraConfig(r=4, target_modules=TARGETS[architecture], modules_to_save=[*scale_modules(qann), "classifier"])
    if architecture == "bert":
        lora.modules_to_save = scale_modules(qann)  # the head is named dense, and has an adapter
    return qann, get_peft_model(qann, lora), teacher, data, collate, batch


@torch.no_grad()
def test_all_linear_on_an_event_network():
    """Its patch projection is a convolution to others: adapters stand beside the matrices, and merge into them."""
    qann, frames = make_event_qann(), frames_of(4)
    expected = qann(frames).logits
    adapted = get_peft_model(qann, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    with_adapters = {name.partition(".lora_")[0] for name, _ in adapted.named_parameters() if ".lora_" in name}
    assert any(name.endswith("q_proj") for name in with_adapters)
    assert not any("patch_embeddings" in name for name in with_adapters)
    assert not torch.equal(adapted(pixel_values=frames).logits, expected)
    merged = adapted.merge_and_unload()
    snn = spiking_twin(merged, time_steps=400)
    assert verify_equivalence(merged, snn, {"pixel_values": frames}).exact


def test_adapters_on_the_patch_projection_are_refused_by_name():
    with pytest.raises(ValueError, match=r"PatchLinear.* is not supported"):
        get_peft_model(make_event_qann(), LoraConfig(r=2, target_modules=["projection"]))


@pytest.mark.parametrize("architecture", TARGETS)
def test_trained_saved_loaded_merged_and_converted(tmp_path, architecture):
    _, adapted, teacher, data, collate, batch = make(architecture)
    before = {name: value.detach().clone() for name, value in adapted.named_parameters()}
    args = make_args(tmp_path, learning_rate=1e-2, num_train_epochs=3)
    QATTrainer(adapted, args, teacher_model=teacher, train_dataset=data, data_collator=collate).train()
    moved = {name for name, value in adapted.named_parameters() if not torch.equal(value, before[name])}
    trained = {name for name, value in adapted.named_parameters() if value.requires_grad}
    assert moved == trained
    scales = {name for name in trained if name.endswith(".scale")}
    assert len(scales) == len(base(architecture).nodes)
    assert all("lora_" in name or ".modules_to_save." in name for name in trained)

    adapted.eval()
    logits = adapted(**batch).logits
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base(architecture), tmp_path / "adapter").eval()
    assert torch.equal(loaded(**batch).logits, logits)

    merged = loaded.merge_and_unload()
    # Merging rounds: W + BA in one matrix, where there were two products. A level may jump at a tie.
    assert torch.allclose(merged(**batch).logits, logits, atol=0.2)
    assert len(merged.nodes) == len(base(architecture).nodes)
    certificate = verify_equivalence(merged, spiking_twin(merged, time_steps=500), batch)
    assert certificate.exact, str(certificate)


def test_an_unmerged_network_says_what_to_call():
    qann, adapted, *_ = make("bert")
    for unmerged in (adapted, qann):  # PEFT puts its adapters into the very model it is given
        with pytest.raises(TypeError, match=r"call merge_and_unload\(\) on the PEFT model"):
            spiking_class(type(qann)).from_quantized(unmerged)


def test_adapters_on_quantized_weights_are_refused(tmp_path):
    qann = QuantBertForSequenceClassification.from_ann(make_text_ann("bert"), weight_bits=8)
    qann.calibrate([make_texts(qann.config, [5, 7])])
    adapted = get_peft_model(qann, LoraConfig(target_modules=["query"], modules_to_save=scale_modules(qann)))
    with pytest.raises(ValueError, match="weight_bits is set: an adapter is added outside of the quantized weight"):
        QATTrainer(adapted, make_args(tmp_path))


def test_adapters_before_calibration_are_refused(tmp_path):
    qann = QuantBertForSequenceClassification.from_ann(make_text_ann("bert"))
    adapted = get_peft_model(qann, LoraConfig(target_modules=["query"], modules_to_save=scale_modules(qann)))
    with pytest.raises(ValueError, match=r"Call calibrate\(batches\) on the Quant model before get_peft_model"):
        QATTrainer(adapted, make_args(tmp_path))


def test_evaluating_the_spiking_network_on_the_way_is_refused(tmp_path):
    _, adapted, *_ = make("vit")
    with pytest.raises(ValueError, match="snn_eval_every: a network with adapters cannot be converted"):
        QATTrainer(adapted, make_args(tmp_path, snn_eval_every=1))
