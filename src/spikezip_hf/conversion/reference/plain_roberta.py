"""Our quantized RoBERTa as a plain torch network in the reference's layout, transformers' names with quantizers."""

import math

import torch
from torch import nn

from spikezip_hf.conversion.reference.plain import Quantizer, affine, attend, check, layer_norm
from spikezip_hf.models.modeling_spike_roberta import QuantRobertaForSequenceClassification
from spikezip_hf.models.quantization import LSQQuantizer


def normed(source: nn.LayerNorm, node: LSQQuantizer | None) -> nn.Module:
    """A LayerNorm, with the quantizer behind it where there is one."""
    return layer_norm(source) if node is None else nn.Sequential(layer_norm(source), Quantizer(node))


def table(source: nn.Embedding) -> nn.Embedding:
    """A plain embedding with the rows of ours."""
    return nn.Embedding.from_pretrained(source.weight.detach().clone())


class Embeddings(nn.Module):
    """Ids, types and positions, each (..., B, N), to (..., B, N, hidden)."""

    def __init__(self, source):
        super().__init__()
        self.word_embeddings = table(source.word_embeddings)
        self.token_type_embeddings = table(source.token_type_embeddings)
        self.position_embeddings = table(source.position_embeddings)
        self.LayerNorm = normed(source.LayerNorm, source.norm_node)

    def forward(self, ids, types, positions) -> torch.Tensor:
        words = self.word_embeddings(ids) + self.token_type_embeddings(types)
        return self.LayerNorm(words + self.position_embeddings(positions))


class SelfAttention(nn.Module):
    """Quantized self-attention, (B, N, hidden) to a tuple of the same, as in transformers of old."""

    def __init__(self, source):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = source.num_heads, source.head_dim
        self.all_head_size = source.num_heads * source.head_dim
        self.query, self.key, self.value = affine(source.query), affine(source.key), affine(source.value)
        self.query_quan, self.key_quan = Quantizer(source.q_node), Quantizer(source.k_node)
        self.value_quan, self.attn_quan = Quantizer(source.v_node), Quantizer(source.probs_node)
        self.after_attn_quan = Quantizer(source.context_node)
        self.dropout = nn.Identity()

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        shape = (self.num_attention_heads, self.attention_head_size)
        q, k, v = (map_(x).unflatten(-1, shape).transpose(1, 2) for map_ in (self.query, self.key, self.value))
        nodes = (self.query_quan, self.key_quan, self.value_quan, self.attn_quan, self.after_attn_quan)
        return (attend(q, k, v, nodes, 1 / math.sqrt(self.attention_head_size), attention_mask),)


class Output(nn.Module):
    """Linear map, residual addition and LayerNorm, with their nodes."""

    def __init__(self, source):
        super().__init__()
        self.dense = nn.Sequential(affine(source.dense), Quantizer(source.output_node))
        self.LayerNorm = normed(source.LayerNorm, source.norm_node)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class SelfAttentionOutput(nn.Module):
    """Self-attention and what follows it, (..., N, hidden) to the same."""

    def __init__(self, source):
        super().__init__()
        self.self = SelfAttention(source.self)
        self.output = Output(source.output)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        return self.output(self.self(x, attention_mask=attention_mask)[0], x)


class Intermediate(nn.Module):
    """First linear map of the MLP and its node."""

    def __init__(self, source):
        super().__init__()
        self.dense = affine(source.dense)
        self.intermediate_act_fn = nn.Sequential(Quantizer(source.hidden_node), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.intermediate_act_fn(self.dense(x))


class Layer(nn.Module):
    """Post-norm encoder layer, (..., N, hidden) to the same."""

    def __init__(self, source):
        super().__init__()
        self.attention = SelfAttentionOutput(source.attention)
        self.intermediate = Intermediate(source.intermediate)
        self.output = Output(source.output)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        x = self.attention(x, attention_mask)
        return self.output(self.intermediate(x), x)


class Encoder(nn.Module):
    """The layers, under the name that they have in transformers' models."""

    def __init__(self, source):
        super().__init__()
        self.layer = nn.ModuleList(Layer(layer) for layer in source.layer)


class Roberta(nn.Module):
    """Embeddings and layers."""

    def __init__(self, source):
        super().__init__()
        self.embeddings = Embeddings(source.embeddings)
        self.encoder = Encoder(source.encoder)

    def forward(self, ids, types, positions, attention_mask: torch.Tensor | None) -> torch.Tensor:
        x = self.embeddings(ids, types, positions)
        for layer in self.encoder.layer:
            x = layer(x, attention_mask)
        return x


class Head(nn.Module):
    """Hidden layer on the first token, its node, and output map: (..., hidden) to (..., classes)."""

    def __init__(self, source):
        super().__init__()
        self.dense = affine(source.dense)
        self.act = nn.Sequential(Quantizer(source.hidden_node), nn.ReLU())
        self.out_proj = affine(source.out_proj)

    def forward(self, first_token: torch.Tensor) -> torch.Tensor:
        return self.out_proj(self.act(self.dense(first_token)))


class RobertaClassifier(nn.Module):
    """Our quantized RoBERTa: ids, types and positions, each (..., B, N), to logits (..., B, classes).

    It serves as QANN and, its parts replaced by SpikingJelly's recipe, as SNN: each call a step or, with T ahead of B,
    all.

    Raises:
        ValueError: `qann` has what the layout cannot express; names the field.
    """

    def __init__(self, qann: QuantRobertaForSequenceClassification):
        super().__init__()
        check(qann)
        if qann.config.head_act != "relu":
            raise ValueError(f"head_act is {qann.config.head_act!r}: the layout's head has a ReLU.")
        self.roberta = Roberta(qann.roberta)
        self.classifier = Head(qann.classifier)

    def forward(self, ids, types, positions, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.classifier(self.roberta(ids, types, positions, attention_mask)[..., 0, :])
