"""Our networks on SpikingJelly 2.0.0, converted by its recipe for SpikeZIP (`SpikeZIPTFQANNRecipe`) as it is.

What drives the network: an image is the current of the first step, with zeros behind it; token ids are given at every
step, of which SpikingJelly's embeddings look at the first.

How it differs from the paper and from us: biases are released over as many steps as a node has levels (but in one step
for the projections of a ViT's attention), so a shorter run has not seen all of them. Thresholds are float32 even in a
float64 network. Padding is kept out of attention but not silenced: its neurons fire, and change no logit.

Once settled, logits are its QANN's up to rounding in float64. In float32 they need not be: neurons and operators add
up changes, which rounds differently from the QANN, and where that moves a level across a tie, later layers differ.
"""

import math

import torch
from torch import nn

from spikezip_hf import QuantRobertaForSequenceClassification, QuantViTForImageClassification
from spikezip_hf.models.quantization import LSQQuantizer

from . import Batch, Peer
from .layout import VisionTransformer, affine, check, layer_norm, threshold

try:
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.ann2snn import ModuleConverter, SpikeZIPTFQANNRecipe
except ImportError as error:
    raise ImportError(
        f"SpikingJelly is missing ({error}): pip install --no-deps spikingjelly==2.0.0 loguru"
    ) from error


class Quantizer(nn.Module):
    """One of our nodes, with the attributes that the recipe reads. Any shape to the same."""

    def __init__(self, node: LSQQuantizer):
        super().__init__()
        self.level, self.sym = node.levels, node.signed
        self.s = nn.Parameter(threshold(node), requires_grad=False)
        self.register_buffer("pos_max", torch.tensor(float(node.max_level)))
        self.register_buffer("neg_min", torch.tensor(float(node.min_level)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.floor(x / self.s + 0.5).clamp(self.neg_min, self.pos_max) * self.s


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, nodes, scaling: float, bias=None) -> torch.Tensor:
    """Quantized self-attention of heads, three times (B, heads, N, d) to (B, N, heads * d); ahead of the nodes of
    queries, keys, values, probabilities and context."""
    q_node, k_node, v_node, probs_node, context_node = nodes
    scores = q_node(q) @ k_node(k).transpose(-1, -2) * scaling
    probs = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    return context_node(probs_node(probs) @ v_node(v)).transpose(1, 2).flatten(2)


class ViTAttention(nn.Module):
    """Quantized self-attention of a ViT, (B, N, hidden) to the same; `fill_attention` gives it its parts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        nodes = (self.quan_q, self.quan_k, self.quan_v, self.attn_quan, self.after_attn_quan)
        return self.quan_proj(self.proj(attend(q, k, v, nodes, self.scale)))


class TextAttention(nn.Module):
    """Quantized self-attention of a text encoder, (B, N, hidden) to a tuple of the same, as in transformers."""

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


class TextResidual(nn.Module):
    """Linear map, residual addition and LayerNorm, each with its node."""

    def __init__(self, source):
        super().__init__()
        self.dense = nn.Sequential(affine(source.dense), Quantizer(source.output_node))
        self.norm = nn.Sequential(layer_norm(source.LayerNorm), Quantizer(source.norm_node))

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dense(x) + residual)


class TextLayer(nn.Module):
    """Post-norm encoder layer, (..., N, hidden) to the same."""

    def __init__(self, source):
        super().__init__()
        self.attention = TextAttention(source.attention.self)
        self.attention_output = TextResidual(source.attention.output)
        self.intermediate = nn.Sequential(
            affine(source.intermediate.dense), nn.ReLU(), Quantizer(source.intermediate.hidden_node)
        )
        self.output = TextResidual(source.output)

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        x = self.attention_output(self.attention(x, attention_mask=attention_mask)[0], x)
        return self.output(self.intermediate(x), x)


class TextClassifier(nn.Module):
    """Our quantized RoBERTa: ids, types and positions, each (..., B, N), to logits (..., B, classes).

    It serves as QANN and, its parts replaced by the recipe, as SNN: each call a step or, with T ahead of B, all.
    """

    def __init__(self, qann: QuantRobertaForSequenceClassification):
        super().__init__()
        check(qann)
        if qann.config.node_placement != "full" or qann.config.head_act != "relu":
            raise ValueError("SpikingJelly's side is written for node_placement='full' and head_act='relu'.")
        embeddings = qann.roberta.embeddings
        tables = (embeddings.word_embeddings, embeddings.token_type_embeddings, embeddings.position_embeddings)
        self.tables = nn.ModuleList(nn.Embedding.from_pretrained(table.weight.detach().clone()) for table in tables)
        self.norm = nn.Sequential(layer_norm(embeddings.LayerNorm), Quantizer(embeddings.norm_node))
        self.layers = nn.ModuleList(TextLayer(layer) for layer in qann.roberta.encoder.layer)
        head = qann.classifier
        self.head = nn.Sequential(affine(head.dense), nn.ReLU(), Quantizer(head.hidden_node), affine(head.out_proj))

    def forward(self, ids, types, positions, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        words, kinds, places = (table(x) for table, x in zip(self.tables, (ids, types, positions)))
        x = self.norm(words + kinds + places)
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.head(x[..., 0, :])


class SpikingJellyPeer(Peer):
    """A converted network in one step mode.

    Args:
        qann: ours, which prepares the inputs.
        network: the same in SpikingJelly's layout.
        snn: `network` converted; several modes may share it, each run starts with a reset.
        step_mode: "s" for one call a step, "m" for one call with all the steps.
    """

    def __init__(self, qann, network: nn.Module, snn: nn.Module, step_mode: str):
        self.name = f"SpikingJelly, {'step by step' if step_mode == 's' else 'multi-step'}"
        self.qann, self.network, self.snn, self.step_mode = qann, network, snn, step_mode

    def encode(self, inputs: Batch) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], dict]:
        """What the network is given at the first step, at each later one, and at all of them.

        Raises:
            ValueError: input per step, embeddings in place of ids, or padding ahead of a text.
        """
        prepared = self.qann.prepare(**inputs)
        if isinstance(prepared, torch.Tensor):
            if prepared.dim() != 4:
                raise ValueError("The peers take images, (batch, channels, height, width), and no input per step.")
            return (prepared,), (torch.zeros_like(prepared),), {}
        tokens = prepared.attention_mask
        if prepared.input_ids is None or not bool(tokens[:, 0].all()):
            raise ValueError("The peers take input_ids, padded on the right.")
        ids = (prepared.input_ids, prepared.token_type_ids, prepared.position_ids)
        bias = None if bool(tokens.all()) else self.qann.roberta.padding_bias(tokens)
        return ids, ids, {"attention_mask": bias}

    @torch.no_grad()
    def quantized(self, inputs: Batch) -> torch.Tensor:
        first, _, always = self.encode(inputs)
        return self.network(*first, **always)

    @torch.no_grad()
    def simulate(self, inputs: Batch, time_steps: int) -> torch.Tensor:
        first, later, always = self.encode(inputs)
        functional.set_step_mode(self.snn, self.step_mode)
        functional.reset_net(self.snn)
        if self.step_mode == "m":
            sequences = [torch.stack([x, *[y] * (time_steps - 1)]) for x, y in zip(first, later)]
            return self.snn(*sequences, **always).sum(0)
        logits = self.snn(*first, **always)
        for _ in range(time_steps - 1):
            logits = logits + self.snn(*later, **always)
        return logits


def spikingjelly_modes(
    qann: QuantViTForImageClassification | QuantRobertaForSequenceClassification,
) -> list[Peer]:
    """`qann` on SpikingJelly, step by step and multi-step.

    Raises:
        ValueError: it has what SpikingJelly's layout cannot express.
    """
    network: nn.Module
    if isinstance(qann, QuantViTForImageClassification):
        family, network = "vit", VisionTransformer(qann, Quantizer, lambda *shape: ViTAttention())
    else:
        family, network = "roberta", TextClassifier(qann)
    network = network.to(qann.device).eval()
    snn = ModuleConverter(recipe=SpikeZIPTFQANNRecipe(model_family=family)).convert(network).eval()
    return [SpikingJellyPeer(qann, network, snn, step_mode) for step_mode in ("s", "m")]
