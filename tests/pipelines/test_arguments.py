"""What is given straight to a model: every mistake is one line that names the argument."""

import numpy as np
import pytest
import torch

from tests.conftest import make_qann, make_swin_qann, make_text_qann, spiking_twin

IDS = torch.tensor([[2, 5, 6, 7, 3]])
ONES = torch.ones_like(IDS)


@pytest.fixture(scope="module", params=["quant", "spike"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def text(kind):
    qann = make_text_qann("bert")
    return qann.eval() if kind == "quant" else spiking_twin(qann, time_steps=400)


@pytest.fixture(scope="module", params=[make_qann, make_swin_qann], ids=["vit", "swin"])
def image(request, kind):
    qann = request.param()
    return qann.eval() if kind == "quant" else spiking_twin(qann, time_steps=400)


BAD_TEXTS = {
    "nothing": ({}, "either input_ids or inputs_embeds"),
    "both": ({"input_ids": IDS, "inputs_embeds": torch.randn(1, 5, 32)}, "either input_ids or inputs_embeds"),
    "no positions": ({"input_ids": IDS[:, :0]}, r"input_ids must be .* got \(1, 0\)"),
    "no texts": ({"input_ids": IDS[:0]}, r"input_ids must be .* got \(0, 5\)"),
    "a list": ({"input_ids": IDS.tolist()}, "input_ids must be a tensor, got list: the model's own tokenizer makes"),
    "an array": ({"input_ids": IDS.numpy()}, "input_ids must be a tensor, got ndarray"),
    "a string": ({"input_ids": "a good film"}, "input_ids must be a tensor, got str"),
    "a dict": ({"input_ids": {"input_ids": IDS}}, r"got dict: give its entries by name, model\(\*\*"),
    "beyond the vocabulary": ({"input_ids": IDS + 1000}, "input_ids must be from 0 to 59, got 1007"),
    "negative": ({"input_ids": IDS - 3}, "input_ids must be from 0 to 59, got -1"),
    "floats": ({"input_ids": IDS.float()}, "input_ids must be int64 or int32, got torch.float32"),
    "mask as a list": ({"input_ids": IDS, "attention_mask": [[1] * 5]}, "attention_mask must be a tensor, got list"),
    "mask of another shape": ({"input_ids": IDS, "attention_mask": ONES[:, :4]}, r"attention_mask .* got \(1, 4\)"),
    "mask of zeros": ({"input_ids": IDS, "attention_mask": 0 * ONES}, "no tokens: attention_mask is 0"),
    "mask of halves": ({"input_ids": IDS, "attention_mask": 0.5 * ONES}, "attention_mask must hold 1"),
    "mask of NaN": ({"input_ids": IDS, "attention_mask": torch.nan * ONES}, "attention_mask must hold 1"),
    "additive mask": ({"input_ids": IDS, "attention_mask": torch.zeros(1, 1, 5, 5)}, r"attention_mask .*\(1, 1, 5, 5"),
    "types": ({"input_ids": IDS, "token_type_ids": 5 * ONES}, "token_type_ids must be from 0 to 1, got 5"),
    "positions": ({"input_ids": IDS, "position_ids": 100 * ONES}, "position_ids must be from 0 to 23, got 100"),
    "embeddings too narrow": ({"inputs_embeds": torch.randn(1, 5, 31)}, "inputs_embeds must be 32 wide"),
    "embeddings too long": ({"inputs_embeds": torch.randn(1, 50, 32)}, "inputs_embeds holds a text of 50 tokens"),
    "complex embeddings": ({"inputs_embeds": torch.ones(1, 5, 32) * 1j}, "inputs_embeds must hold real numbers"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_texts(text, case):
    arguments, message = BAD_TEXTS[case]
    with pytest.raises(ValueError, match=message) as refused:
        text(**arguments)
    assert "\n" not in str(refused.value)


def test_embeddings_and_masks_of_any_type(text):
    with torch.no_grad():
        expected = text(IDS).logits
        embeddings = text.get_input_embeddings()(IDS)
        for arguments in (
            {"input_ids": IDS.int()},
            {"input_ids": IDS, "attention_mask": ONES.bool()},
            {"input_ids": IDS, "attention_mask": ONES.float()},
            {"inputs_embeds": embeddings},
            {"inputs_embeds": embeddings.double()},
        ):
            assert torch.equal(text(**arguments).logits, expected)


BAD_IMAGES = {
    "nothing": (lambda x: None, "pixel_values is missing"),
    "a list": (lambda x: x.tolist(), "pixel_values must be a tensor, got list: the model's own image processor makes"),
    "an array": (lambda x: x.numpy(), "pixel_values must be a tensor, got ndarray"),
    "a dict": (lambda x: {"pixel_values": x}, r"got dict: give its entries by name, model\(\*\*"),
    "complex": (lambda x: x * 1j, "pixel_values must hold real numbers, got torch.complex64"),
    "another channel": (lambda x: torch.cat([x, x[:, :1]], 1), r"got \(1, 4, .*num_channels"),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), r"pixel_values must be \(batch, 3, "),
    "no batch": (lambda x: x[0], r"pixel_values must be \(batch, 3, "),
    "six dimensions": (lambda x: x[None, None], r"pixel_values must be \(batch, 3, "),
    "no images": (lambda x: x[:0], r"got \(0, 3, "),
    "no steps": (lambda x: x[:, None][:, :0], r"got \(1, 0, 3, "),
    "another size": (lambda x: torch.nn.functional.pad(x, (0, 1)), "image_size of the config"),
}


def pixels(model) -> torch.Tensor:
    return torch.randn(model.dummy_inputs["pixel_values"].shape)


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_images(image, case):
    change, message = BAD_IMAGES[case]
    with pytest.raises(ValueError, match=message) as refused:
        image(change(pixels(image)))
    assert "\n" not in str(refused.value)


def test_pixels_that_are_not_finite(image, kind):
    wrong = pixels(image)
    wrong[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError if kind == "spike" else FloatingPointError, match=r"not finite|not a number"):
        image(wrong)


def test_whole_numbers_are_pixels_too(image):
    counts = (10 * pixels(image)).round()
    with torch.no_grad():
        for dtype in (torch.int64, torch.int32, torch.float64):
            assert torch.equal(image(counts.to(dtype)).logits, image(counts).logits)


@pytest.mark.parametrize("base", [False, True], ids=["classifier", "bare"])
def test_arguments_of_other_networks_are_named(text, image, base):
    for model, theirs in ((image, {"input_ids": IDS}), (text, {"pixel_values": torch.zeros(1, 3, 8, 8)})):
        asked = model.base_model if base else model
        (name,) = theirs
        with pytest.raises(TypeError, match=f"{type(asked).__name__} takes no {name}: its input is ") as refused:
            asked(**theirs)
        assert asked.main_input_name in str(refused.value)
        assert "output_hidden_states" in str(refused.value)


def test_a_misspelt_argument_is_named(image):
    with pytest.raises(TypeError, match="takes no time_step: its input is pixel_values"):
        image(pixels(image), time_step=4)


def test_arguments_can_still_be_looked_up(text, image):
    """Trainer and pipelines ask a model's forward what it takes."""
    import inspect

    assert list(inspect.signature(image.forward).parameters)[:2] == ["pixel_values", "labels"]
    assert list(inspect.signature(text.forward).parameters)[:2] == ["input_ids", "attention_mask"]
    with torch.no_grad():
        assert isinstance(image(pixels(image), return_dict=False), tuple)


def test_numpy_numbers_do_not_pass_for_steps(image, kind):
    if kind == "spike":
        with pytest.raises(ValueError, match="time_steps"):
            image(pixels(image), time_steps=np.float64(2.5))
