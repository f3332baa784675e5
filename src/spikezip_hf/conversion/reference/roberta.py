"""Layout of the reference's quantized RoBERTa, transformers' sequence classifier with quantizers put in.

The reference has no quantizer behind LayerNorms. Networks made for SpikingJelly's recipe may have them, under the
names `LayerNorm.0` and `LayerNorm.1`.
"""

from collections.abc import Iterator

import torch

from spikezip_hf.conversion.reference.mapping import Entry, affine, count_layers, node, shape_of
from spikezip_hf.models.configuration_spike_roberta import QuantRobertaConfig
from spikezip_hf.models.modeling_spike_roberta import QuantRobertaForSequenceClassification

quant_class = QuantRobertaForSequenceClassification
MARK = "roberta.embeddings.word_embeddings.weight"  # what tells this layout
HEADS = {768: 12, 1024: 16}  # of RoBERTa base and large
LAYER_NORM_EPS = 1e-5  # of RoBERTa base and large
NORM_NODE = "roberta.embeddings.LayerNorm.1.s"
REFUSED = {
    "lm_head.": "the head of a language model, and no classifier",
    "roberta.pooler.": "a pooler, which RoBERTa's classifier has not",
}


def sizes(tensors: dict[str, torch.Tensor], image_size: tuple[int, int] | None) -> dict:
    """Fields of the config that shapes and names give.

    Raises:
        ValueError: a tensor that they are read from is missing; names it.
    """
    if image_size is not None:
        raise ValueError("image_size is for images, and the file holds a network for text.")
    vocab_size, hidden = shape_of(tensors, MARK, 2)
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_hidden_layers": count_layers(tensors, "roberta.encoder.layer."),
        "intermediate_size": shape_of(tensors, "roberta.encoder.layer.0.intermediate.dense.weight", 2)[0],
        "max_position_embeddings": shape_of(tensors, "roberta.embeddings.position_embeddings.weight", 2)[0],
        "type_vocab_size": shape_of(tensors, "roberta.embeddings.token_type_embeddings.weight", 2)[0],
        "num_labels": shape_of(tensors, "classifier.out_proj.weight", 2)[0],
        "node_placement": "full" if NORM_NODE in tensors else "reference",
        "head_act": "relu",
    }


def entries(tensors: dict[str, torch.Tensor], config: QuantRobertaConfig) -> Iterator[Entry]:
    """Where each tensor of our network is."""
    norm_nodes = config.node_placement == "full"
    for table in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        yield Entry(f"roberta.embeddings.{table}.weight", f"roberta.embeddings.{table}.weight")
    yield from layer_norm("roberta.embeddings", norm_nodes)
    for layer in range(config.num_hidden_layers):
        yield from encoder_layer(f"roberta.encoder.layer.{layer}", norm_nodes)
    yield from affine("classifier.dense", "classifier.dense")
    yield from node("classifier.hidden_node", "classifier.act.0")
    yield from affine("classifier.out_proj", "classifier.out_proj")


def layer_norm(path: str, with_node: bool) -> Iterator[Entry]:
    """A LayerNorm, alone or with a quantizer behind it."""
    yield from affine(f"{path}.LayerNorm", f"{path}.LayerNorm.0" if with_node else f"{path}.LayerNorm")
    if with_node:
        yield from node(f"{path}.norm_node", f"{path}.LayerNorm.1")


def encoder_layer(path: str, norm_nodes: bool) -> Iterator[Entry]:
    """An encoder layer; its names are the same on both sides, but for the nodes."""
    attention = f"{path}.attention.self"
    for name in ("query", "key", "value"):
        yield from affine(f"{attention}.{name}", f"{attention}.{name}")
        yield from node(f"{attention}.{name[0]}_node", f"{attention}.{name}_quan")
    yield from node(f"{attention}.probs_node", f"{attention}.attn_quan")
    yield from node(f"{attention}.context_node", f"{attention}.after_attn_quan")
    for output in (f"{path}.attention.output", f"{path}.output"):
        yield from affine(f"{output}.dense", f"{output}.dense.0")
        yield from node(f"{output}.output_node", f"{output}.dense.1")
        yield from layer_norm(output, norm_nodes)
    yield from affine(f"{path}.intermediate.dense", f"{path}.intermediate.dense")
    yield from node(f"{path}.intermediate.hidden_node", f"{path}.intermediate.intermediate_act_fn.0")
