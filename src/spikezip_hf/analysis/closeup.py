"""One sample looked at closely: rasters, attention and feature maps, all of which follow from its levels in time."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from spikezip_hf.analysis.recording import Watch, check_classifier, logits_until
from spikezip_hf.models.engines import RecordingEngine
from spikezip_hf.models.layers import SelfAttentionCore
from spikezip_hf.models.modeling_quantization import SpikePreTrainedModel, TwinPreTrainedModel, eval_mode


@dataclass(frozen=True, eq=False)
class CloseUp:
    """One sample in T steps, simulated alone: levels of chosen nodes.

    Attributes:
        inputs: what was simulated, (1, ...).
        levels: {node name: (T, ...) whole numbers}, the tracers S_t after each step.
        thresholds: {node name: (1,) or (features,)}, V_thr of the neurons.
        expected_levels: {node name: (...)}, those of the quantized network.
        spikes: (T, nodes) int32, spikes in each step, of all nodes, in the order of `model.node_names`.
        neurons: (nodes,) int64, how many each node has.
        logits_per_step: (T, classes), as in `Recording`.
        expected_logits: (classes,), those of the quantized network.
        equilibrium_step: T_eq; -1: not proven.
    """

    inputs: dict[str, torch.Tensor]
    levels: dict[str, torch.Tensor]
    thresholds: dict[str, torch.Tensor]
    expected_levels: dict[str, torch.Tensor]
    spikes: torch.Tensor
    neurons: torch.Tensor
    logits_per_step: torch.Tensor
    expected_logits: torch.Tensor
    equilibrium_step: int

    def raster(self, node: str, neurons: Collection[int] | None = None) -> torch.Tensor:
        """(T, neurons) spikes Theta_t of the paper's Eq. 1, -1, 0 or 1 (to k where spikes are graded).

        Args:
            neurons: numbers in the flattened node; all by default.
        """
        levels = self.levels[node].flatten(1)
        if neurons is not None:
            levels = levels[:, list(neurons)]
        return levels.diff(dim=0, prepend=torch.zeros_like(levels[:1]))

    def values(self, node: str) -> torch.Tensor:
        """(T, ...) accumulated output of a node, s * S_t: of `attention_nodes`, probabilities (T, heads, N, N)."""
        threshold = self.thresholds[node]
        return self.levels[node].to(threshold.dtype) * threshold

    def expected_values(self, node: str) -> torch.Tensor:
        """(...) the same in the quantized network."""
        threshold = self.thresholds[node]
        return self.expected_levels[node].to(threshold.dtype) * threshold


@torch.no_grad()
def close_up(
    model: SpikePreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    nodes: Collection[str],
    time_steps: int | None = None,
    *,
    twin: TwinPreTrainedModel | None = None,
    execution: str = "cumulative",
) -> CloseUp:
    """Simulate one sample alone, and keep the levels of some nodes after every step.

    Args:
        inputs: of a batch of one; labels are ignored.
        nodes: names among `model.node_names`. Keeping them takes a byte for each neuron and step.

    Raises:
        ValueError: more than one sample, an unknown node, or a model that is no classifier of samples.
    """
    check_classifier(model)
    if unknown := sorted(set(nodes) - set(model.node_names)):
        raise ValueError(f"nodes: this network has no {unknown[0]}; see model.node_names.")
    inputs = model.inputs_of(inputs)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    if any(len(value) != 1 for value in tensors.values()):
        raise ValueError("inputs: one sample is looked at closely, so the batch must be of one.")
    watch = Watch(kept=nodes)
    with watch.of(model):
        run = model.trajectory(
            **inputs, time_steps=time_steps, output_time_steps=True, stop="equilibrium", execution=execution
        )
    steps = watch.steps
    if int(run.equilibrium_step[0]) > 0:
        steps = int(run.equilibrium_step[0])
    recorder = RecordingEngine()
    twin = model.to_quantized() if twin is None else twin
    with eval_mode(twin):
        expected = twin(**inputs, engine=recorder).logits[0]
    thresholds = {node.name: node.threshold(model.dtype).cpu() for node in model.nodes if node.name in nodes}
    levels = {name: torch.cat(parts)[:steps] for name, parts in watch.levels.items()}
    return CloseUp(
        inputs={name: value.cpu() for name, value in tensors.items()},
        levels=levels,
        thresholds=thresholds,
        expected_levels={name: recorder.levels[name][0].to("cpu", levels[name].dtype) for name in nodes},
        spikes=watch.spikes(steps)[0],
        neurons=run.neuron_counts[0].cpu(),  # type: ignore[index]
        logits_per_step=logits_until(run, steps)[0].cpu(),
        expected_logits=expected.cpu(),
        equilibrium_step=int(run.equilibrium_step[0]),
    )


def attention_of_head(config, probs: torch.Tensor) -> torch.Tensor:
    """Attention (..., N) of what the head of a network reads, of all (..., N, N): of the first position, which is the
    class token or the first of a text, or the mean of the patches'."""
    if getattr(config, "pooling", "class_token") == "mean":
        return probs[..., config.prefix_tokens :, :].mean(-2)
    return probs[..., 0, :]


def within_windows(config) -> bool:
    """Whether a network attends within windows, as Swin does, so that there is no attention over the whole image."""
    return hasattr(config, "window_size")


def attention_nodes(model: SpikePreTrainedModel) -> list[str]:
    """Names of the nodes of attention probabilities, (heads, N, N) each, from the first layer to the last."""
    return [module.probs_node.name for module in model.modules() if isinstance(module, SelfAttentionCore)]
