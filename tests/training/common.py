"""Small data sets and arguments for the tests of training."""

import torch

from spikezip_hf import QATTrainingArguments
from tests.conftest import make_images, make_texts


def make_data(config, count=24):
    images = make_images(config, count)
    return [{"pixel_values": image, "labels": torch.tensor(i % 5)} for i, image in enumerate(images)]


def make_text_data(config, count=24):
    """Texts of 3 to 11 tokens, one by one, as a tokenizer gives them."""
    texts = []
    for i in range(count):
        one = make_texts(config, [3 + i % 9], seed=i)
        texts.append({**{key: value[0] for key, value in one.items()}, "labels": i % 3})
    return texts


def text_collator(config, extra=0):
    """Pads to the longest of a batch, and by `extra` more."""

    def pad(examples):
        longest = max(len(example["input_ids"]) for example in examples) + extra
        filler = {"input_ids": config.pad_token_id, "token_type_ids": 0, "attention_mask": 0}
        batch = {
            key: torch.stack(
                [torch.nn.functional.pad(e[key], (0, longest - len(e[key])), value=value) for e in examples]
            )
            for key, value in filler.items()
        }
        return {**batch, "labels": torch.tensor([example["labels"] for example in examples])}

    return pad


def make_args(tmp_path, kind=QATTrainingArguments, **fields):
    defaults = {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return kind(**{**defaults, **fields})
