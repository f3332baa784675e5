"""The paper's network, written out from the paper alone in numpy and float64: spikes of one sample, step by step.

What is simulated is Figure 3 by Eq. 1 (neurons), Eq. 3 (products with weights), Eq. 4 (SESA) and Eq. 5 (Spike-Softmax
and Spike-LayerNorm). Embeddings and biases are currents of the first step, and the head's potential is the answer
(section 3.2.2). It shares nothing with the library but the names of weights, and knows no batch and no padding.
"""

import numpy as np


class Simulation:
    """State of every neuron and operator, by name, through the steps of one run.

    Args:
        weights: {name: float64 array}, of a quantized network.
        levels: L of the quantizers. alpha = -L/2 and beta = L/2 - 1; 0 and L - 1 behind ReLU and softmax.

    Attributes:
        spikes: {name of a neuron layer: [theta of each step]}.
    """

    def __init__(self, weights: dict, levels: int):
        self.weights, self.levels = weights, levels
        self.first = True
        self.state: dict = {}
        self.spikes: dict = {}

    def neurons(self, name, v_in, signed=True):
        """Eq. 1 with V_thr = s, S_min = alpha, S_max = beta, V_0 = V_thr / 2. Gives V_thr * Theta."""
        v_thr = self.weights[f"{name}.scale"]
        s_min, s_max = (-self.levels // 2, self.levels // 2 - 1) if signed else (0, self.levels - 1)
        v, s = self.state.get(name, (v_thr / 2, 0))
        v = v + v_in
        theta = np.where((v >= v_thr) & (s < s_max), 1, np.where((v < 0) & (s > s_min), -1, 0))
        self.state[name] = v - v_thr * theta, s + theta
        self.spikes.setdefault(name, []).append(theta)
        return v_thr * theta

    def weight(self, name):
        weight = self.weights[f"{name}.weight"]
        weight = weight.reshape(len(weight), -1)
        scale = self.weights.get(f"{name}.weight_quantizer.scale")
        if scale is None:
            return weight
        return scale[:, None] * np.clip(np.floor(weight / scale[:, None] + 0.5), -127, 127)

    def activation_weight(self, name, x):
        """Eq. 3: the spikes of a step times W; the bias is applied once."""
        return x @ self.weight(name).T + (self.weights[f"{name}.bias"] if self.first else 0.0)

    def activation_activation(self, name, q, k):
        """Eq. 4: S_Q,t K_t + Q_t S_K,t - Q_t K_t, with S the spikes so far, those of step t included."""
        s_q, s_k = self.state.get(name, (0.0, 0.0))
        s_q, s_k = s_q + q, s_k + k
        self.state[name] = s_q, s_k
        return s_q @ k + q @ s_k - q @ k

    def differential(self, name, sigma, x):
        """Eq. 5: O_t - O_{t-1}, where O_t = sigma(x_1 + ... + x_t)."""
        total, before = self.state.get(name, (0.0, 0.0))
        total = total + x
        self.state[name] = total, sigma(total)
        return sigma(total) - before

    def spike_softmax(self, name, x):
        return self.differential(name, softmax, x)

    def spike_layer_norm(self, name, x, eps):
        return self.differential(name, lambda total: self.layer_norm(name, total, eps), x)

    def layer_norm(self, name, x, eps):
        centered = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + eps)
        return centered / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def self_attention(self, name, x, heads, projections):
        """Figure 3 right: x (n, d) to the neurons of the context, (n, d)."""
        q, k, v = (
            self.neurons(f"{name}.{letter}_node", self.activation_weight(f"{name}.{projection}", x))
            for letter, projection in zip("qkv", projections)
        )
        n, d = q.shape
        q, k, v = (y.reshape(n, heads, d // heads).transpose(1, 0, 2) for y in (q, k, v))
        scores = self.activation_activation(f"{name}.QK", q, k.transpose(0, 2, 1)) / np.sqrt(d // heads)
        attention = self.neurons(f"{name}.probs_node", self.spike_softmax(f"{name}.softmax", scores), signed=False)
        context = self.activation_activation(f"{name}.AV", attention, v)
        return self.neurons(f"{name}.context_node", context.transpose(1, 0, 2).reshape(n, d))


def softmax(x):
    exponential = np.exp(x - x.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def run(network, weights, levels, steps, **arguments):
    """Simulate `network` for so many steps.

    Returns:
        {neuron layer: (steps, ...) spikes}, and (steps, classes) potential of the head after each step.
    """
    simulation = Simulation(weights, levels)
    charges = []
    for _ in range(steps):
        charges.append(network(simulation, **arguments))
        simulation.first = False
    return {name: np.stack(spikes) for name, spikes in simulation.spikes.items()}, np.cumsum(charges, 0)


def vit(sim: Simulation, image, patch_size: int, layers: int, heads: int, eps: float):
    """One step of the pre-norm ViT. image: (channels, H, W), the charge of the first step."""
    channels, height, width = image.shape
    rows, columns = height // patch_size, width // patch_size
    patches = image.reshape(channels, rows, patch_size, columns, patch_size).transpose(1, 3, 0, 2, 4)
    patches = patches.reshape(rows * columns, -1) * (1.0 if sim.first else 0.0)
    x = sim.neurons(
        "embeddings.patch_embeddings.node", sim.activation_weight("embeddings.patch_embeddings.projection", patches)
    )
    x = np.concatenate([np.zeros_like(x[:1]), x])
    if sim.first:
        x = x + sim.weights["embeddings.position_embeddings"][0]
        x[0] += sim.weights["embeddings.cls_token"][0, 0]
    for index in range(layers):
        layer = f"layers.{index}"
        attention, mlp = f"{layer}.attention", f"{layer}.mlp"
        y = sim.neurons(f"{layer}.layernorm_before_node", sim.spike_layer_norm(f"{layer}.layernorm_before", x, eps))
        y = sim.self_attention(attention, y, heads, ("q_proj", "k_proj", "v_proj"))
        x = x + sim.neurons(f"{attention}.output_node", sim.activation_weight(f"{attention}.o_proj", y))
        y = sim.neurons(f"{layer}.layernorm_after_node", sim.spike_layer_norm(f"{layer}.layernorm_after", x, eps))
        y = sim.neurons(f"{mlp}.hidden_node", sim.activation_weight(f"{mlp}.fc1", y), signed=False)
        x = x + sim.neurons(f"{mlp}.output_node", sim.activation_weight(f"{mlp}.fc2", y))
    x = sim.neurons("layernorm_node", sim.spike_layer_norm("layernorm", x, eps))
    return sim.activation_weight("classifier", x[0])


def text_encoder(sim: Simulation, ids, types, first_position: int, layers: int, heads: int, eps: float):
    """One step of the post-norm encoder; last hidden state (n, d). ids, types: (n,), tokens alone."""
    tables = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type", "position"))
    places = ids, types, first_position + np.arange(len(ids))
    total = sum(sim.weights[table][rows] for table, rows in zip(tables, places))
    x = sim.layer_norm("embeddings.LayerNorm", total, eps) * (1.0 if sim.first else 0.0)
    x = sim.neurons("embeddings.norm_node", x)
    for index in range(layers):
        layer = f"encoder.layer.{index}"
        y = sim.self_attention(f"{layer}.attention.self", x, heads, ("query", "key", "value"))
        x = residual(sim, f"{layer}.attention.output", y, x, eps)
        y = sim.activation_weight(f"{layer}.intermediate.dense", x)
        y = sim.neurons(f"{layer}.intermediate.hidden_node", y, signed=False)
        x = residual(sim, f"{layer}.output", y, x, eps)
    return x


def residual(sim: Simulation, name: str, y, x, eps: float):
    y = sim.neurons(f"{name}.output_node", sim.activation_weight(f"{name}.dense", y))
    return sim.neurons(f"{name}.norm_node", sim.spike_layer_norm(f"{name}.LayerNorm", y + x, eps))


def roberta(sim: Simulation, **arguments):
    x = text_encoder(sim, **arguments)[0]
    x = sim.neurons("classifier.hidden_node", sim.activation_weight("classifier.dense", x), signed=False)
    return sim.activation_weight("classifier.out_proj", x)


def bert(sim: Simulation, **arguments):
    x = text_encoder(sim, **arguments)[0]
    x = sim.neurons("pooler.hidden_node", sim.activation_weight("pooler.dense", x), signed=False)
    return sim.activation_weight("classifier", x)
