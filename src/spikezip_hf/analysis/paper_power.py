# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The paper's power model (section 4.4 and appendix A2), to the letter, and the arithmetic of its tables.

    P = #total-spikes / (1 * 10^-3) * alpha             (6)     watts: 1 ms a step, alpha = 0.9 pJ a spike activity
    N_post = sum_i R^i * N_neu^i                        (A1)    spikes that neurons fire
    N_pre = sum_i R^(i-1) * f_in^i * N_neu^i            (A2)    spikes that synapses deliver
    f_in,conv = C_in * K_H * K_W                        (A3)
    N_pre,conv = C_in * K_H * K_W * C_out * O_H * O_W   (A4)    without R, which A2 has
    N_pre,fc = N_in * N_out                             (A5)    likewise; of one token
    #total-spikes = N_pre + N_post                      (A6)    "during one time-step"

What its text leaves open, and what is done here:
- Products of two spike trains (SESA) have no term in A1 to A6. `paper_power_w` gives both, with and without them.
- Softmax, LayerNorm, residual additions, the analog product of the patch embedding and memory have none either.
- "During one time-step": of which? Here the mean over the steps simulated. So power falls with every idle step that is
  appended, at the same energy: power can be compared only along with the number of steps.
- R for signed spikes: here spikes of either sign a neuron and step.
- R^(i-1) at i = 0 does not exist: the first layer takes current and delivers no spikes.
- How the digital networks of Table A1 were priced: 20.17 W is 4.38e9 multiply-adds (Swin-T has 4.5e9) at 4.6 pJ in
  1 ms. So this is a *quantized* network at the price of FP32, and an inference each millisecond, where the spiking
  network needs 32 to 64 of them.
Firing rates are not given, so the spiking rows of Tables 8 and A1 cannot be computed anew; what they imply can:
`paper_tables`. The paper's code has another model: multiply-adds at 4.6 pJ and additions at 0.9 pJ, an image.
"""

from typing import Any

from spikezip_hf.analysis.energy_prices import DEFAULT, EnergyConstants
from spikezip_hf.analysis.operation_counts import SESA_KINDS, Operations

# (table, network, kind, data set, time-steps, watts) as printed. SpikeGPT is not here: Table 8 has a bound only.
PRINTED = (
    ("8", "SpikeBERT", "SNN", "SST-2", 4, 7.135),
    ("8", "SpikeZIP-TF 355M", "SNN", "SST-2", 64, 4.320),
    ("8", "Spikformer 66.34M", "SNN", "ImageNet", 4, 8.02),
    ("8", "Spikingformer 66.34M", "SNN", "ImageNet", 4, 3.42),
    ("8", "Spikformer V2 64.18M", "SNN", "ImageNet", 4, 3.67),
    ("8", "Spikformer V2 172.70M", "SNN", "ImageNet", 4, 6.39),
    ("8", "SpikeZIP-TF 86.57M", "SNN", "ImageNet", 64, 6.30),
    ("8", "SpikeZIP-TF 304.33M", "SNN", "ImageNet", 64, 19.85),
    ("A1", "MST Swin-T", "QANN", "ImageNet", 1, 20.810),
    ("A1", "MST Swin-T", "SNN", "ImageNet", 512, 8.528),
    ("A1", "MST Swin-T", "QANN", "CIFAR-100", 1, 20.730),
    ("A1", "MST Swin-T", "SNN", "CIFAR-100", 256, 8.286),
    ("A1", "MST Swin-T", "QANN", "CIFAR-10", 1, 20.730),
    ("A1", "MST Swin-T", "SNN", "CIFAR-10", 256, 8.304),
    ("A1", "MST Swin-T", "QANN", "CIFAR10-DVS", 1, 20.940),
    ("A1", "MST Swin-T", "SNN", "CIFAR10-DVS", 512, 8.188),
    ("A1", "SpikeZIP-TF Swin-T", "QANN", "ImageNet", 1, 20.170),
    ("A1", "SpikeZIP-TF Swin-T", "SNN", "ImageNet", 64, 1.363),
    ("A1", "SpikeZIP-TF Swin-T", "QANN", "CIFAR-100", 1, 20.170),
    ("A1", "SpikeZIP-TF Swin-T", "SNN", "CIFAR-100", 32, 1.428),
    ("A1", "SpikeZIP-TF Swin-T", "QANN", "CIFAR-10", 1, 20.170),
    ("A1", "SpikeZIP-TF Swin-T", "SNN", "CIFAR-10", 32, 1.422),
    ("A1", "SpikeZIP-TF Swin-T", "QANN", "CIFAR10-DVS", 1, 20.280),
    ("A1", "SpikeZIP-TF Swin-T", "SNN", "CIFAR10-DVS", 64, 1.317),
)


def power_w(total_spikes: float, constants: EnergyConstants = DEFAULT) -> float:
    """Eq. 6: watts of so many spike activities, N_pre + N_post (Eq. A6), in one time-step."""
    return total_spikes / constants.step_seconds * constants.spike_pj * 1e-12


def post_synaptic_spikes(rate: float, neurons: float) -> float:
    """A layer's term of Eq. A1, of one time-step; `rate` is spikes a neuron and step."""
    return rate * neurons


def pre_synaptic_spikes(rate_before: float, fan_in: float, neurons: float) -> float:
    """A layer's term of Eq. A2, of one time-step; `rate_before` is that of the layer it listens to.

    For a linear map of n tokens fan_in is N_in and neurons n * N_out, so this is spikes times fan-out.
    """
    return rate_before * fan_in * neurons


def fan_in_conv(in_channels: int, kernel_height: int, kernel_width: int) -> int:
    """Eq. A3."""
    return in_channels * kernel_height * kernel_width


def paper_power_w(operations: Operations, constants: EnergyConstants = DEFAULT, sesa: bool = False) -> float:
    """Eq. 6 of a simulated network, from its counts: N_pre of linear maps, N_post, as the mean over its steps.

    Args:
        sesa: also take the additions of SESA for pre-synaptic spikes, of which the paper's text says nothing.
    """
    totals = operations.totals()
    kinds = ("weights", "spike", *(SESA_KINDS if sesa else ()))
    spikes = sum(totals[kind]["count"] for kind in kinds if kind in totals)
    return power_w(spikes / float(operations.steps.double().mean()), constants)


def paper_tables(constants: EnergyConstants = DEFAULT) -> list[dict[str, Any]]:
    """Power rows of the paper's Tables 8 and A1, and what they come to.

    Returns:
        A row for each: "power_w" as printed; "inference_j", that power over all the steps of an inference; of an SNN
        "spikes_per_step" by Eq. 6; of a QANN "multiply_adds" at FP32's price. In Table A1 the SNN has 1.363 W against
        20.17 W, which over 64 steps is 87 mJ against 20 mJ: 15 times less power, and 4.3 times the energy.
    """
    rows = []
    for table, network, kind, data, steps, watts in PRINTED:
        seconds = steps * constants.step_seconds
        one_step_j = watts * constants.step_seconds
        rows.append(
            {
                "table": table,
                "network": network,
                "kind": kind,
                "data": data,
                "time_steps": steps,
                "power_w": watts,
                "inference_j": watts * seconds,
                "spikes_per_step": one_step_j / constants.spike_pj / 1e-12 if kind == "SNN" else None,
                "multiply_adds": one_step_j / constants.fp32_multiply_add_pj / 1e-12 if kind == "QANN" else None,
            }
        )
    return rows
