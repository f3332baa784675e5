"""What the tests of pipelines share: saved networks, ordinary, quantized and spiking, and a pipeline of each."""

from pathlib import Path

import torch
from transformers import pipeline

from tests.conftest import spiking_twin

KINDS = ("quant", "spike")


def pipelines(task: str, folder: Path, ann, qann, processor) -> dict:
    """{kind: pipeline} of the ordinary network ("ann") and of both twins, each from a folder of its own."""
    made = {}
    for kind, model in (("ann", ann), ("quant", qann), ("spike", spiking_twin(qann, time_steps=400))):
        model.save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
        made[kind] = pipeline(task, model=str(folder / kind), trust_remote_code=False)
        assert type(made[kind].model) is type(model)
    return made


def logits_of(answer: list[dict], pipe) -> torch.Tensor:
    """(classes,) of an answer with all classes and function_to_apply="none"."""
    scores = {pipe.model.config.label2id[one["label"]]: one["score"] for one in answer}
    return torch.tensor([scores[index] for index in range(len(scores))])


def refusal(pipe, what, **options) -> tuple[type, str]:
    """How a pipeline refuses an input: class and message of its error."""
    try:
        answer = pipe(what, **options)
    except Exception as error:
        return type(error), str(error)
    raise AssertionError(f"{what!r} was answered: {answer}")
