"""PEFT's adapters on Quant models.

qann.calibrate(batches)
adapted = get_peft_model(qann, LoraConfig(target_modules=["query", "value"], modules_to_save=scale_modules(qann)))
QATTrainer(adapted, args, ...).train()
snn = Spike....from_quantized(adapted.merge_and_unload())
"""

from transformers import PreTrainedModel

from spikezip_hf.models.modeling_quantization import QuantPreTrainedModel


def scale_modules(qann: QuantPreTrainedModel) -> list[str]:
    """Names of the nodes for `modules_to_save`: their scales are then trained and saved together with an adapter.

    Add the head ("classifier") to train that too.
    """
    return sorted({node.name.rpartition(".")[2] for node in qann.nodes})


def without_adapters(model) -> PreTrainedModel:
    """`model` itself, or the one that PEFT has put its adapters in."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
