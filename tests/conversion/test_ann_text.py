"""transformers' BERT and RoBERTa to Quant models: same network, or a refusal that names the part."""

import pytest
import torch
from transformers import BertModel, DistilBertConfig, DistilBertForSequenceClassification, RobertaModel
from transformers.utils import logging

from spikezip_hf.conversion.calibration import FloatEngine
from tests.conftest import ARCHITECTURES, TASKS, make_text_ann, make_text_qann, make_texts, spiking_twin, text_class

pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


@pytest.mark.parametrize("fields", [{}, {"num_hidden_layers": 3}, {"layer_norm_eps": 1e-3}, {"type_vocab_size": 4}])
@pytest.mark.parametrize("task", TASKS)
def test_without_its_quantizers_the_network_is_the_ann(architecture, task, fields):
    ann = make_text_ann(architecture, task, dtype=torch.float64, **fields)
    qann = text_class("Quant", architecture, task).from_ann(ann, head_act="tanh")
    texts = make_texts(ann.config, [12, 5, 9])  # padded on the right, where transformers' own positions agree
    with torch.no_grad():
        ours, theirs = qann(**texts, engine=FloatEngine())[0], ann(**texts)[0]
    if theirs.dim() == 3:  # padding holds nothing of ours
        theirs, ours = (x[texts["attention_mask"] == 1] for x in (theirs, ours))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)  # float64 sums of two implementations


def test_left_padding_gives_what_the_ann_gives_without(architecture):
    """transformers' BERT numbers positions through left padding; ours counts tokens, as a text alone does."""
    ann = make_text_ann(architecture, dtype=torch.float64)
    qann = text_class("Quant", architecture).from_ann(ann, head_act="tanh")
    texts = make_texts(ann.config, [12, 5], side="left")
    with torch.no_grad():
        ours = qann(**texts, engine=FloatEngine()).logits
        for row, length in enumerate([12, 5]):
            alone = {key: value[row : row + 1, 12 - length :] for key, value in texts.items()}
            assert torch.allclose(ours[row], ann(**alone).logits[0], rtol=0, atol=1e-12)


def test_relu_head_is_the_tanh_head_but_for_the_activation(architecture, caplog):
    logging.get_logger("spikezip_hf").addHandler(caplog.handler)
    ann = make_text_ann(architecture, dtype=torch.float64)
    qann = text_class("Quant", architecture).from_ann(ann)
    assert "The tanh in the head" in caplog.text
    assert "head_act='tanh'" in caplog.text
    texts = make_texts(ann.config, [6, 6])
    # The same head by hand, from the ANN's own parameters.
    with torch.no_grad():
        if architecture == "bert":
            first = ann.bert(**texts).last_hidden_state[:, 0]
            expected = ann.classifier(ann.bert.pooler.dense(first).relu())
        else:
            first = ann.roberta(**texts).last_hidden_state[:, 0]
            expected = ann.classifier.out_proj(ann.classifier.dense(first).relu())
        assert torch.allclose(qann(**texts, engine=FloatEngine()).logits, expected, rtol=0, atol=1e-12)
    caplog.clear()
    text_class("Quant", architecture).from_ann(ann, head_act="tanh")
    text_class("Quant", architecture, "ForTokenClassification").from_ann(
        make_text_ann(architecture, "ForTokenClassification")
    )
    assert "tanh" not in caplog.text


def test_many_levels_come_close_to_the_ann(architecture):
    ann = make_text_ann(architecture)
    texts = make_texts(ann.config, [12, 8, 10, 5, 7, 3])
    errors = []
    for levels in (8, 32, 256):
        qann = text_class("Quant", architecture).from_ann(ann, quantization_levels=levels, head_act="tanh")
        qann.calibrate([texts])
        with torch.no_grad():
            errors.append(float((qann(**texts).logits - ann(**texts).logits).abs().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_scales_of_each_granularity(architecture):
    wide = {"embeddings.norm_node", "output_node", "norm_node"}
    for granularity in ("per_tensor", "per_channel", "mixed"):
        for node in make_text_qann(architecture, granularity=granularity).nodes:
            channels = 48 if node.name.endswith("intermediate.hidden_node") else 32
            per_channel = {
                "per_tensor": False,
                "per_channel": not node.name.endswith("probs_node"),
                "mixed": node.name.endswith(tuple(wide)),
            }[granularity]
            assert node.scale.numel() == (channels if per_channel else 1), (granularity, node.name)


def test_pooler_comes_along(architecture):
    if architecture != "bert":
        pytest.skip("RoBERTa's classifier has no pooler")
    base = make_text_qann(architecture).bert
    snn = spiking_twin(base, time_steps=400)
    texts = make_texts(base.config, [9, 4])
    out = snn(**texts)
    with torch.no_grad():
        assert torch.equal(out.pooler_output, base(**texts).pooler_output)


def test_stages_are_layers_and_unsigned_nodes_stand_behind_relu_and_softmax_only(architecture):
    qann = make_text_qann(architecture, num_hidden_layers=3)
    for node in qann.nodes:
        parts = node.name.split(".")
        expected = int(parts[2]) if parts[0] == "encoder" else 0 if parts[0] == "embeddings" else 3
        assert node.stage == expected, node.name
        assert node.signed == (parts[-1] not in ("probs_node", "hidden_node")), node.name


class TestRefusals:
    def test_gelu(self, architecture):
        ann = make_text_ann(architecture, hidden_act="gelu")
        quant_class = text_class("Quant", architecture)
        with pytest.raises(ValueError, match=r"intermediate_act_fn is GELU.*replace_activations=True"):
            quant_class.from_ann(ann)
        assert quant_class.from_ann(ann, replace_activations=True).config.hidden_act == "relu"

    def test_other_models(self, architecture):
        other = {"bert": "roberta", "roberta": "bert"}[architecture]
        distil = DistilBertForSequenceClassification(DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=16))
        for ann in (make_text_ann(other), make_text_ann(architecture, "Model"), distil):
            with pytest.raises(ValueError, match=f"ForSequenceClassification, got {type(ann).__name__}"):
                text_class("Quant", architecture).from_ann(ann)

    def test_pooler_of_a_bare_model(self, architecture):
        ann = {"bert": BertModel, "roberta": RobertaModel}[architecture](make_text_ann(architecture).config)
        with pytest.raises(ValueError, match="add_pooling_layer=False"):
            text_class("Quant", architecture, "Model").from_ann(ann)

    def test_relative_positions(self, architecture):
        ann = make_text_ann(architecture)
        ann.config.position_embedding_type = "relative_key"
        with pytest.raises(ValueError, match="position_embedding_type is 'relative_key'"):
            text_class("Quant", architecture).from_ann(ann)

    def test_decoder(self, architecture):
        ann = make_text_ann(architecture, is_decoder=True)
        with pytest.raises(ValueError, match="is_decoder is True: only encoders"):
            text_class("Quant", architecture).from_ann(ann)

    def test_another_number_of_labels(self, architecture):
        with pytest.raises(ValueError, match="id2label names 2 labels, the network to convert has 3"):
            text_class("Quant", architecture).from_ann(make_text_ann(architecture), id2label={0: "bad", 1: "good"})

    def test_head_of_another_activation_after_conversion(self, architecture):
        with pytest.raises(ValueError, match="head_act of the network to convert is 'relu'"):
            text_class("Spike", architecture).from_quantized(make_text_qann(architecture), head_act="tanh")


def test_absolute_positions_named_in_an_old_config_are_fine(architecture):
    ann = make_text_ann(architecture)
    ann.config.position_embedding_type = "absolute"
    assert text_class("Quant", architecture).from_ann(ann).config.quantization_levels == 32
