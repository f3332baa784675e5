# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Configurations of the quantized and of the spiking RoBERTa: RobertaConfig and the fields of this library."""

from huggingface_hub.dataclasses import strict
from transformers import RobertaConfig

from .configuration_quantization import RECORDS, QuantizationFields, SpikeFields, TextFields


def check_padding_id(config) -> None:
    """Positions are counted from pad_token_id + 1, so RoBERTa cannot do without one."""
    if config.pad_token_id is None:
        raise ValueError("pad_token_id is None: RoBERTa counts positions from pad_token_id + 1. Set it.")


@strict
class QuantRobertaConfig(TextFields, QuantizationFields, RobertaConfig):
    """RobertaConfig with the fields of `QuantizationFields` and `TextFields`.

    `hidden_act` has to be "relu", its default here.

    Raises:
        ValueError: a field of this library is out of range, or one of RobertaConfig has a value that cannot be
            quantized; the message names it.

    Example:
        >>> QuantRobertaConfig(num_hidden_layers=6, quantization_levels=16)
    """

    model_type = "quant_roberta"

    hidden_act: str = "relu"

    def check_fields(self) -> None:
        super().check_fields()
        check_padding_id(self)


@strict
class SpikeRobertaConfig(TextFields, SpikeFields, RobertaConfig):
    """RobertaConfig with the fields of `SpikeFields` and `TextFields`.

    Raises:
        ValueError: as for `QuantRobertaConfig`.

    Example:
        >>> SpikeRobertaConfig(num_hidden_layers=6, quantization_levels=16, time_steps=32)
    """

    model_type = "spike_roberta"
    keys_to_ignore_at_inference = RECORDS

    hidden_act: str = "relu"

    def check_fields(self) -> None:
        super().check_fields()
        check_padding_id(self)
