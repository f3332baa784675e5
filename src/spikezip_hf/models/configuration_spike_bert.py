# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Configurations of the quantized and of the spiking BERT: BertConfig and the fields of this library."""

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from .configuration_quantization import RECORDS, QuantizationFields, SpikeFields, TextFields


@strict
class QuantBertConfig(TextFields, QuantizationFields, BertConfig):
    """BertConfig with the fields of `QuantizationFields` and `TextFields`.

    `hidden_act` has to be "relu", its default here.

    Raises:
        ValueError: a field of this library is out of range, or one of BertConfig has a value that cannot be
            quantized; the message names it.

    Example:
        >>> QuantBertConfig(num_hidden_layers=6, quantization_levels=16)
    """

    model_type = "quant_bert"

    hidden_act: str = "relu"


@strict
class SpikeBertConfig(TextFields, SpikeFields, BertConfig):
    """BertConfig with the fields of `SpikeFields` and `TextFields`.

    Raises:
        ValueError: as for `QuantBertConfig`.

    Example:
        >>> SpikeBertConfig(num_hidden_layers=6, quantization_levels=16, time_steps=32)
    """

    model_type = "spike_bert"
    keys_to_ignore_at_inference = RECORDS

    hidden_act: str = "relu"
