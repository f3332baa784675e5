"""The networks that recipes start from."""

import copy

import pytest
import torch
from transformers import AutoModel

from spikezip_hf import QuantViTForImageClassification
from spikezip_hf.loading import load_network
from spikezip_hf.models.layers import DropPath
from spikezip_hf.recipes import networks
from tests.conftest import make_ann, make_images, make_text_ann, make_texts

LABELS = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}


def same_weights(first, second) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_roberta_from_bert_is_the_same_encoder():
    bert = make_text_ann("bert", "Model", dtype=torch.float64)
    roberta = networks.roberta_from_bert(bert, {"num_labels": 5}).double().eval()
    texts = make_texts(bert.config, [12, 5])
    with torch.no_grad():
        ours, theirs = (model(**texts).last_hidden_state for model in (roberta.roberta, bert))
    real = texts["attention_mask"] == 1
    assert torch.equal(ours[real], theirs[real])
    assert roberta.config.num_labels == 5
    assert roberta.config.max_position_embeddings == bert.config.max_position_embeddings + 1


def test_character_tokenizer():
    tokenizer = networks.character_tokenizer(["房间很好 OK", "房间不好 ok!"], max_length=8)
    assert tokenizer.convert_ids_to_tokens(tokenizer("房间好 ok")["input_ids"]) == [
        *("[CLS]", "房", "间", "好", "o", "##k", "[SEP]")
    ]
    assert tokenizer.unk_token_id in tokenizer("很")["input_ids"]  # only once in the texts
    assert len(tokenizer("好" * 50, truncation=True)["input_ids"]) == 8


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_small_encoder_takes_texts_up_to_its_length(architecture):
    tokenizer = networks.character_tokenizer(["good film"] * 2, max_length=16)
    fields = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, **LABELS}
    encoder = networks.small_encoder(architecture, tokenizer, 16, fields).eval()
    config = encoder.config
    assert (config.model_type, config.hidden_act) == (architecture, "relu")
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (32, 1, 1024)
    assert config.id2label == LABELS["id2label"]
    text = tokenizer("good " * 50, truncation=True, return_tensors="pt")
    assert text["input_ids"].shape == (1, 16)
    with torch.no_grad():
        assert encoder(**text).logits.shape == (1, 2)


def save_bert(folder, **fields):
    """A BERT encoder on disk, with a tokenizer."""
    tokenizer = networks.character_tokenizer(["good film"] * 2, max_length=16)
    tokenizer.save_pretrained(folder)
    bert = make_text_ann("bert", "Model", vocab_size=len(tokenizer), **fields)
    bert.save_pretrained(folder)
    return bert


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_encoder_of_a_checkpoint_with_relu_and_the_labels_of_the_data(tmp_path, architecture):
    bert = save_bert(tmp_path, hidden_act="gelu")
    classifier, tokenizer = networks.load_encoder(str(tmp_path), architecture, LABELS)
    assert type(classifier) is networks.CLASSES[architecture]
    assert (classifier.config.hidden_act, classifier.config.num_labels) == ("relu", 2)
    assert type(classifier.base_model.encoder.layer[0].intermediate.intermediate_act_fn) is torch.nn.ReLU
    assert same_weights(classifier.base_model.encoder, bert.encoder)
    assert tokenizer("good")["input_ids"] == networks.character_tokenizer(["good film"] * 2, 16)("good")["input_ids"]


@pytest.mark.parametrize(("found", "wanted"), [("roberta", "bert"), ("vit", "bert"), ("vit", "roberta")])
def test_encoder_of_another_architecture_is_refused(tmp_path, found, wanted):
    (make_ann() if found == "vit" else make_text_ann(found)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"is a checkpoint of '{found}', which cannot become '{wanted}'"):
        networks.load_encoder(str(tmp_path), wanted, {})


def test_offline_encoder_is_found_in_its_package(tmp_path, monkeypatch):
    (tmp_path / "encoder_for_a_test" / "model").mkdir(parents=True)
    (tmp_path / "encoder_for_a_test" / "__init__.py").touch()
    monkeypatch.setattr(networks, "OFFLINE_ENCODER", "encoder_for_a_test")
    with pytest.raises(FileNotFoundError, match="run `make encoder`, or give --model"):
        networks.offline_encoder()
    monkeypatch.syspath_prepend(tmp_path)
    assert networks.offline_encoder() == tmp_path / "encoder_for_a_test" / "model"


def test_small_vit_and_its_processor():
    fields = {"image_size": 8, "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vit, processor = networks.small_image_network("vit", {**fields, **LABELS}, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert (vit.config.hidden_act, vit.config.hidden_size, vit.config.num_labels) == ("relu", 32, 2)
    assert (*processor.image_mean, *processor.image_std) == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    # An image of another size: the processor makes it fit the network.
    pixels = processor(torch.zeros(3, 12, 10, dtype=torch.uint8), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 8, 8)
    # A tolerance: the processor may scale and normalize in one go, which rounds otherwise.
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-0.1 / 0.4, -0.2 / 0.5, -0.3 / 0.6], rel=1e-5)
    with torch.no_grad():
        assert vit(pixels).logits.shape == (1, 2)


def test_vit_of_a_checkpoint_gets_relu_and_a_head_for_the_labels(tmp_path):
    source = make_ann(hidden_act="gelu", num_labels=5)
    source.save_pretrained(tmp_path)
    networks.small_image_network("vit", {"image_size": 8}, [0.5] * 3, [0.25] * 3)[1].save_pretrained(tmp_path)
    vit, processor = networks.load_image_network(str(tmp_path), "vit", LABELS)
    assert (vit.config.hidden_act, vit.config.num_labels, vit.classifier.out_features) == ("relu", 2, 2)
    assert same_weights(vit.vit, source.vit)
    assert (processor.size["height"], list(processor.image_std)) == (8, [0.25] * 3)


def test_small_swin_and_one_of_a_checkpoint(tmp_path):
    fields = {
        "image_size": [16, 8],
        "patch_size": 2,
        "window_size": 2,
        "embed_dim": 8,
        "depths": [1],
        "num_heads": [2],
    }
    swin, processor = networks.small_image_network("swin", {**fields, **LABELS}, [0.5] * 3, [0.25] * 3)
    assert (swin.config.hidden_act, swin.config.num_labels, processor.size["width"]) == ("relu", 2, 8)
    swin.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, _ = networks.load_image_network(str(tmp_path), "swin", {**LABELS, "drop_path_rate": 0.2})
    assert loaded.config.drop_path_rate == 0.2
    assert same_weights(loaded, swin)


def test_vit_of_another_architecture_is_refused(tmp_path):
    make_text_ann("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a checkpoint of 'bert', not of 'vit'"):
        networks.load_image_network(str(tmp_path), "vit", {})


def test_drop_path_is_that_of_the_quantized_twin(tmp_path):
    ann = make_ann(num_hidden_layers=3)
    qann = QuantViTForImageClassification.from_ann(ann, quantization_levels=16, drop_path_rate=0.3)
    networks.add_drop_path(ann, 0.3)
    ours, theirs = ([m.rate for m in model.modules() if isinstance(m, DropPath)] for model in (ann, qann))
    assert sorted({*ours}) == sorted({*theirs}) == [0.0, 0.15, 0.3]


def test_drop_path_changes_neither_evaluation_nor_checkpoint(tmp_path):
    ann = make_ann()
    plain, images = copy.deepcopy(ann), make_images(ann.config, 4)
    networks.add_drop_path(ann, 0.5)
    ann.eval()  # as the Trainer does: the new modules are in training mode
    assert same_weights(ann, plain)
    with torch.no_grad():
        assert torch.equal(ann(images).logits, plain(images).logits)
    ann.save_pretrained(tmp_path)
    assert same_weights(AutoModel.from_pretrained(tmp_path, add_pooling_layer=False), plain.vit)


def test_drop_path_leaves_out_both_branches_of_a_layer_in_training():
    ann = make_ann().train()
    networks.add_drop_path(ann, 1 - 1e-9)  # all but certain to drop, at the last layer
    first, last = ann.vit.layers
    hidden = torch.randn(4, 5, 32)
    with torch.no_grad():
        assert torch.equal(last(hidden), hidden)
        assert not torch.equal(first(hidden), hidden)


def test_a_checkpoint_without_a_processor_says_how_to_have_one(tmp_path):
    make_ann().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"holds no image processor: save the one .*image_processor\.save_pretrained"):
        load_network(str(tmp_path))
