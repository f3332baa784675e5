"""Counts of operations, held to scalar loops over the spikes of each step, and to what follows from spike counts."""

import json
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spikezip_hf.analysis.operations import KINDS, Operations, count_operations
from spikezip_hf.models.engines import EventEngine
from tests.conftest import make_ann, make_images, make_qann, make_text_qann, make_texts, spiking_twin

TINY = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
SETTINGS = {
    "paper": {},
    "graded": {"max_spikes_per_step": 2},
    "layerwise": {"firing_schedule": "layerwise", "firing_window": 3},
    "never": {"stop": "never", "time_steps": 9, "max_spikes_per_step": 2},
}


def spikes_over_time(snn, inputs, steps):
    """{node: [step][sample] signed spikes}, of an `EventEngine` that is run by hand."""
    prepared = snn.prepare(**inputs)
    batch_size = len(next(iter(inputs.values())))
    engine = EventEngine(
        batch_size,
        snn.device,
        max_spikes_per_step=snn.config.max_spikes_per_step,
        **snn.config.schedule(snn.nodes),
    )
    found = {name: [] for name in snn.node_names}
    before = dict.fromkeys(found, 0)
    with torch.no_grad():
        for _ in range(steps):
            engine.advance(1)
            snn.network(prepared, engine)
            engine.conclude()
            for name, tracer in engine.tracers.items():
                found[name].append(tracer.long() - before[name])
                before[name] = tracer.long()
    return found


class Scalar:
    """Counts of one sample, one operation at a time.

    Args:
        spikes: {node: [step] nested lists of integers}.
        tokens: positions that are not padding.
    """

    def __init__(self, snn, spikes, tokens, steps):
        self.snn, self.spikes, self.tokens, self.steps = snn, spikes, tokens, steps
        self.heads = snn.config.num_attention_heads
        self.thresholds = {node.name: float(node.scale.detach()) for node in snn.nodes}
        self.counts = {}

    def add(self, module, kind, number=1):
        self.counts[module, kind] = self.counts.get((module, kind), 0) + number

    def linear(self, module, node, out_features, positions=None):
        for step in self.spikes[node]:
            rows = step if isinstance(step[0], list) else [step]
            for row in rows if positions is None else [rows[position] for position in positions]:
                for spike in row:
                    for _ in range(out_features):
                        self.add(module, "weights", abs(spike))
        rows = 1 if positions is not None or not isinstance(self.spikes[node][0][0], list) else len(self.tokens)
        self.add(module, "bias", out_features * rows)

    def sesa(self, module, left, right):
        """left[t][i][j], right[t][j][c]: dicts of the indices that exist."""
        for a, b in zip(left, right):
            for (i, j), (other, c) in product(a, b):
                if j != other:
                    continue
                self.add(module, "SESA S_A B", abs(b[other, c]))
                self.add(module, "SESA A S_B", abs(a[i, j]))
                self.add(module, "SESA A B", abs(a[i, j] * b[other, c]))

    def attention(self, prefix, width):
        size = width // self.heads
        q, k, v, probs = (self.spikes[f"{prefix}.{name}_node"] for name in ("q", "k", "v", "probs"))
        for head in range(self.heads):
            features = range(size)
            at = head * size
            of_q = [{(i, f): step[i][at + f] for i in self.tokens for f in features} for step in q]
            of_k = [{(f, j): step[j][at + f] for j in self.tokens for f in features} for step in k]
            of_v = [{(j, f): step[j][at + f] for j in self.tokens for f in features} for step in v]
            of_p = [{(i, j): step[head][i][j] for i in self.tokens for j in self.tokens} for step in probs]
            self.sesa(f"{prefix}.scores", of_q, of_k)
            self.sesa(f"{prefix}.context", of_p, of_v)
        self.add(f"{prefix}.softmax", "softmax", self.heads * len(self.tokens) ** 2 * self.steps)

    def plus(self, module, a, b):
        """Sum of two residual branches, [step]{index: change}, on the way to a LayerNorm."""
        for x, y in zip(a, b):
            for index in x:
                self.add(module, "residual", int(x[index] != 0 and y[index] != 0))
        return [{index: x[index] + y[index] for index in x} for x, y in zip(a, b)]

    def layernorm(self, module, x):
        for step in x:
            for change in step.values():
                self.add(module, "residual", int(change != 0))
        self.add(module, "LayerNorm", len(x[0]) * self.steps)

    def changes(self, node, shift=0):
        """[step]{(position, feature): value that the node hands on}."""
        s = self.thresholds[node]
        tokens = range(len(self.spikes[node][0])) if shift else self.tokens
        return [{(n + shift, f): s * m for n in tokens for f, m in enumerate(step[n])} for step in self.spikes[node]]

    def neurons(self):
        for name, steps in self.spikes.items():
            for step in steps:
                for spike in flat(step):
                    self.add(name, "spike", abs(spike))
            shape = torch.tensor(steps[0]).shape
            number = {1: 1, 2: len(self.tokens), 3: len(self.tokens) ** 2}[len(shape)]
            number *= {1: shape[0], 2: shape[-1], 3: shape[0]}[len(shape)]
            if "patch_embeddings" in name:
                number = shape.numel()
            self.add(name, "membrane update", number * self.steps)

    def vit(self):
        config, net = self.snn.config, self.snn.vit
        width, inner = config.hidden_size, config.intermediate_size
        patches = self.changes("embeddings.patch_embeddings.node", shift=1)
        projection = "embeddings.patch_embeddings.projection"
        per_patch = config.num_channels * config.patch_size**2
        self.add(projection, "input product", len(patches[0]) * per_patch)
        self.add(projection, "bias", len(patches[0]))

        class_token, position = net.embeddings.cls_token[0].tolist(), net.embeddings.position_embeddings[0].tolist()
        indices = [(n, f) for n in self.tokens for f in range(width)]
        tokens, positions = [], []
        for t, step in enumerate(patches):
            tokens.append({(n, f): step[n, f] if n else class_token[0][f] * (t == 0) for n, f in indices})
            positions.append({(n, f): position[n][f] * (t == 0) for n, f in indices})
        x = self.plus("layers.0.layernorm_before", tokens, positions)
        for layer in range(config.num_hidden_layers):
            path = f"layers.{layer}"
            self.layernorm(f"{path}.layernorm_before", x)
            for name in "qkv":
                self.linear(f"{path}.attention.{name}_proj", f"{path}.layernorm_before_node", width)
            self.attention(f"{path}.attention", width)
            self.linear(f"{path}.attention.o_proj", f"{path}.attention.context_node", width)
            x = self.plus(f"{path}.layernorm_after", self.changes(f"{path}.attention.output_node"), x)
            self.layernorm(f"{path}.layernorm_after", x)
            self.linear(f"{path}.mlp.fc1", f"{path}.layernorm_after_node", inner)
            self.linear(f"{path}.mlp.fc2", f"{path}.mlp.hidden_node", width)
            last = layer == config.num_hidden_layers - 1
            following = "layernorm" if last else f"layers.{layer + 1}.layernorm_before"
            x = self.plus(following, self.changes(f"{path}.mlp.output_node"), x)
        self.layernorm("layernorm", x)
        self.linear("classifier", "layernorm_node", config.num_labels, positions=[0])
        self.neurons()
        return self.counts

    def roberta(self):
        config = self.snn.config
        width, inner = config.hidden_size, config.intermediate_size
        self.add("embeddings.LayerNorm", "LayerNorm", len(self.tokens) * width)
        before = "embeddings.norm_node"
        for layer in range(config.num_hidden_layers):
            path = f"encoder.layer.{layer}"
            for name in ("query", "key", "value"):
                self.linear(f"{path}.attention.self.{name}", before, width)
            self.attention(f"{path}.attention.self", width)
            for part, source, in_node in (
                (f"{path}.attention.output", f"{path}.attention.self.context_node", before),
                (f"{path}.output", f"{path}.intermediate.hidden_node", f"{path}.attention.output.norm_node"),
            ):
                if part == f"{path}.output":
                    self.linear(f"{path}.intermediate.dense", in_node, inner)
                self.linear(f"{part}.dense", source, width)
                x = self.plus(f"{part}.LayerNorm", self.changes(f"{part}.output_node"), self.changes(in_node))
                self.layernorm(f"{part}.LayerNorm", x)
            before = f"{path}.output.norm_node"
        self.linear("classifier.dense", before, width, positions=self.tokens[:1])
        self.linear("classifier.out_proj", "classifier.hidden_node", config.num_labels)
        self.neurons()
        return self.counts


def flat(nested):
    return [value for part in nested for value in flat(part)] if isinstance(nested, list) else [nested]


def by_hand(snn, inputs, operations):
    """What `Scalar` counts, for each sample, over the steps that count for it."""
    steps = int(operations.steps.max())
    spikes = spikes_over_time(snn, inputs, steps)
    mask = inputs.get("attention_mask")
    for row, own in enumerate(operations.steps.tolist()):
        one = {name: [step[row].tolist() for step in found] for name, found in spikes.items()}
        tokens = list(range(5)) if mask is None else mask[row].nonzero().flatten().tolist()
        scalar = Scalar(snn, one, tokens, own)
        yield scalar.vit() if mask is None else scalar.roberta()


def counted(operations, row):
    return {(entry.module, entry.kind): int(entry.count[row]) for entry in operations.entries}


@pytest.mark.parametrize("setting", SETTINGS)
def test_vit_against_scalar_loops(setting):
    qann = make_qann(dtype=torch.float64, levels=8, **TINY)
    snn = spiking_twin(qann, **{"time_steps": 300, **SETTINGS[setting]})
    inputs = {"pixel_values": make_images(snn.config, 2, torch.float64)}
    operations = count_operations(snn, inputs)
    for row, expected in enumerate(by_hand(snn, inputs, operations)):
        assert counted(operations, row) == expected
    # And as many spikes and steps as the model's own default simulation.
    outputs = snn(**inputs)
    assert torch.equal(operations.spikes, outputs.spike_counts.sum(1))
    assert torch.equal(operations.neurons, outputs.neuron_counts.sum(1))
    assert torch.equal(operations.equilibrium_step, outputs.equilibrium_step)
    assert (operations.steps == 9).all() == (setting == "never")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_against_scalar_loops(setting, side):
    qann = make_text_qann("roberta", dtype=torch.float64, levels=8, **{**TINY, "num_hidden_layers": 1})
    snn = spiking_twin(qann, **{"time_steps": 300, **SETTINGS[setting]})
    inputs = make_texts(snn.config, [5, 2], side=side, extra=1)
    operations = count_operations(snn, inputs)
    for row, expected in enumerate(by_hand(snn, inputs, operations)):
        assert counted(operations, row) == expected


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_products_with_weights_follow_from_spike_counts(architecture):
    """Spikes times fan-out: what a node's spikes come to in each linear map behind it."""
    qann = make_text_qann(architecture, dtype=torch.float64)
    snn = spiking_twin(qann, time_steps=300)
    inputs = make_texts(snn.config, [12, 3, 7], extra=2)
    operations, outputs = count_operations(snn, inputs), snn(**inputs)
    spikes = dict(zip(snn.node_names, outputs.spike_counts.unbind(1)))
    found = {(entry.module, entry.kind): entry.count for entry in operations.entries}
    layer = "encoder.layer.1"
    for module, node, fan_out in (
        (f"{layer}.attention.self.query", "encoder.layer.0.output.norm_node", 32),
        (f"{layer}.intermediate.dense", f"{layer}.attention.output.norm_node", 48),
        (f"{layer}.output.dense", f"{layer}.intermediate.hidden_node", 32),
    ):
        assert torch.equal(found[module, "weights"], spikes[node] * fan_out), module
    # A spike of a query, key or value meets each token of its text, one of the probabilities each feature of a head.
    tokens = inputs["attention_mask"].sum(1)
    core = f"{layer}.attention.self"
    assert torch.equal(found[f"{core}.scores", "SESA S_A B"], spikes[f"{core}.k_node"] * tokens)
    assert torch.equal(found[f"{core}.scores", "SESA A S_B"], spikes[f"{core}.q_node"] * tokens)
    assert torch.equal(found[f"{core}.context", "SESA S_A B"], spikes[f"{core}.v_node"] * tokens)
    assert torch.equal(found[f"{core}.context", "SESA A S_B"], spikes[f"{core}.probs_node"] * 8)


def test_a_text_counts_the_same_alone_and_beside_padding():
    snn = spiking_twin(make_text_qann("bert"), time_steps=300)
    texts = make_texts(snn.config, [9, 2, 6], side="left", extra=3)
    together = count_operations(snn, texts)
    for row, length in enumerate([9, 2, 6]):
        alone = count_operations(snn, {name: value[row : row + 1, -length:] for name, value in texts.items()})
        assert counted(alone, 0) == counted(together, row)
        assert alone.table() == together.sample(row).table()


def test_dense_multiply_adds_are_those_of_the_ordinary_network():
    ann, snn = make_ann(), spiking_twin(make_qann(), time_steps=4)
    images = make_images(snn.config, 2)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ann.set_attn_implementation("eager")
        ann(images)
    totals = count_operations(snn, {"pixel_values": images}).totals()
    dense = sum(totals[kind]["dense"] for kind in ("input product", "weights", "SESA A B"))
    assert dense * 2 * len(images) == counter.get_total_flops()


def test_confidence_counts_each_sample_until_its_decision():
    snn = spiking_twin(make_qann(), time_steps=300)
    inputs = {"pixel_values": make_images(snn.config, 4)}
    early = count_operations(snn, inputs, stop="confidence", confidence_threshold=1.0)
    assert len(early.steps.unique()) > 1
    for row, steps in enumerate(early.steps.tolist()):
        one = {"pixel_values": inputs["pixel_values"][row : row + 1]}
        assert counted(early, row) == counted(count_operations(snn, one, steps, stop="never"), 0)


def test_input_per_step_is_multiplied_as_often_as_it_comes():
    snn = spiking_twin(make_qann(), time_steps=300)
    frames = make_images(snn.config, 2, steps=3)
    totals = count_operations(snn, {"pixel_values": frames}).totals()
    assert totals["input product"]["count"] == 3 * totals["input product"]["dense"]
    assert totals["bias"]["count"] == totals["bias"]["dense"]


def test_analog_operands_are_multiply_adds_of_what_changes():
    snn = spiking_twin(make_text_qann("roberta", node_placement="reference"), time_steps=300)
    operations = count_operations(snn, make_texts(snn.config, [6, 3], extra=2), 1, stop="never")
    analog = {entry.module: entry for entry in operations.entries if entry.kind == "analog weights"}
    assert set(analog) == {name for name in snn.product_inputs().analog if not name.startswith("embeddings")}
    query = analog["encoder.layer.0.attention.self.query"]  # the whole embedding arrives at the first step
    assert query.count.tolist() == query.dense.tolist() == [6 * 32 * 32, 3 * 32 * 32]


def test_idle_steps_add_only_what_each_step_does():
    snn = spiking_twin(make_qann(), time_steps=300)
    inputs = {"pixel_values": make_images(snn.config, 1)}
    settled = count_operations(snn, inputs)
    steps = int(settled.steps)
    longer = count_operations(snn, inputs, 2 * steps, stop="never")
    for short, long in zip(settled.entries, longer.entries):
        assert int(long.count) == int(short.count) * (2 if short.each_step else 1), short


def test_tables_are_plain_and_batches_join():
    snn = spiking_twin(make_qann(), time_steps=300)
    images = make_images(snn.config, 3)
    whole = count_operations(snn, {"pixel_values": images, "labels": torch.zeros(3)})
    parts = [count_operations(snn, {"pixel_values": one}) for one in images.split([2, 1])]
    joined = Operations.join(parts)
    assert joined.table() == whole.table()
    assert joined.summary() == whole.summary()
    assert json.loads(json.dumps(whole.table())) == whole.table()
    assert {row["kind"] for row in whole.table()} <= set(KINDS)
    assert sum(row["count"] for row in whole.table() if row["kind"] == "spike") == whole.summary()["spikes"]
    assert "spikes" in str(whole)
    with pytest.raises(ValueError, match="different networks or time_steps"):
        Operations.join([whole, count_operations(snn, {"pixel_values": images}, 3)])
    with pytest.raises(ValueError, match="empty"):
        Operations.join([])
    with pytest.raises(IndexError, match="3 samples"):
        whole.sample(3)


def test_errors_come_before_any_work():
    qann = make_qann()
    snn = spiking_twin(qann, time_steps=8)
    images = make_images(snn.config, 1)
    with pytest.raises(TypeError, match="from_quantized"):
        count_operations(qann, {"pixel_values": images})
    with pytest.raises(ValueError, match="time_steps"):
        count_operations(snn, {"pixel_values": images}, 0)
    with pytest.raises(ValueError, match="stop"):
        count_operations(snn, {"pixel_values": images}, stop="soon")
    with pytest.raises(ValueError, match="pixel_values"):
        count_operations(snn, {"pixel_values": images[..., :4]})
    with pytest.raises(ValueError, match="not finite"):
        count_operations(snn, {"pixel_values": images * torch.nan})
    with pytest.raises(ValueError, match="raise it"):
        count_operations(snn, {"pixel_values": make_images(snn.config, 1, steps=3)}, 2)


def test_the_copy_in_float64_is_a_copy():
    snn = spiking_twin(make_qann(), time_steps=300)
    images = {"pixel_values": make_images(snn.config, 2)}
    count_operations(snn, images)
    assert snn.dtype == torch.float32
    twin = snn.double()
    assert count_operations(twin, images).table() == count_operations(twin, images, float64=False).table()
