# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""Quantized and spiking RoBERTa: positions from pad_token_id + 1, and a head with a hidden layer of its own."""

from .configuration_spike_roberta import QuantRobertaConfig, SpikeRobertaConfig
from .modeling_text import (
    QuantTextClassifier,
    QuantTextModel,
    SequenceClassifierNetwork,
    SpikeTextClassifier,
    SpikeTextModel,
    TokenClassifierNetwork,
    head_dropout,
)
from .operators import Linear, name_operators
from .text_network import HeadHidden, TextPreTrainedModel


class RobertaPreTrainedModel(TextPreTrainedModel):
    base_model_prefix = "roberta"

    @property
    def first_position(self):
        return self.config.pad_token_id + 1  # the rows before are for padding


class QuantRobertaModel(RobertaPreTrainedModel, QuantTextModel):
    """Quantized RoBERTa without a head."""

    config: QuantRobertaConfig


class SpikeRobertaModel(RobertaPreTrainedModel, SpikeTextModel):
    """Spiking RoBERTa without a head."""

    config: SpikeRobertaConfig
    quant_class = QuantRobertaModel


class RobertaClassificationHead(HeadHidden):
    """Hidden layer on the first token and the output map behind it, both after dropout."""

    def __init__(self, config):
        super().__init__(config)
        self.dropout = head_dropout(config)
        self.out_proj = Linear(config.hidden_size, config.num_labels, weight_bits=config.weight_bits)

    def forward(self, first_token, engine):
        hidden = self.hidden(self.dropout(first_token), engine)
        return engine.linear(self.out_proj, self.dropout(hidden))


class RobertaSequenceClassifierNetwork(RobertaPreTrainedModel, SequenceClassifierNetwork):
    """The encoder and RoBERTa's head."""

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.roberta = self.base_class(config)
        self.classifier = RobertaClassificationHead(config)
        name_operators(self.classifier, "classifier")
        self.post_init()

    def classify(self, outputs, engine):
        return self.classifier(engine.first_token(outputs.last_hidden_state), engine)


class QuantRobertaForSequenceClassification(QuantTextClassifier, RobertaSequenceClassifierNetwork):
    """Quantized RoBERTa that classifies texts."""

    config: QuantRobertaConfig
    base_class = QuantRobertaModel


class SpikeRobertaForSequenceClassification(SpikeTextClassifier, RobertaSequenceClassifierNetwork):
    """Spiking RoBERTa that classifies texts."""

    config: SpikeRobertaConfig
    base_class = SpikeRobertaModel
    quant_class = QuantRobertaForSequenceClassification


class RobertaTokenClassifierNetwork(RobertaPreTrainedModel, TokenClassifierNetwork):
    """The encoder and a linear classifier of each token."""


class QuantRobertaForTokenClassification(QuantTextClassifier, RobertaTokenClassifierNetwork):
    """Quantized RoBERTa that classifies tokens."""

    config: QuantRobertaConfig
    base_class = QuantRobertaModel


class SpikeRobertaForTokenClassification(SpikeTextClassifier, RobertaTokenClassifierNetwork):
    """Spiking RoBERTa that classifies tokens."""

    config: SpikeRobertaConfig
    base_class = SpikeRobertaModel
    quant_class = QuantRobertaForTokenClassification
