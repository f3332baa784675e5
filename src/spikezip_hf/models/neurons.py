# Copyright 2026 The spikezip_hf authors. Apache-2.0.
"""The ST-BIF+ neuron (paper section 3.1, Eq. 1), in two equal forms. State goes in and comes out; none is kept here.

    V_t = V_{t-1} + V_in_t - V_thr * Theta_t                Theta_t = +1  if V >= V_thr and S < S_max
    S_t = S_{t-1} + Theta_t                                           -1  if V < 0      and S > S_min
                                                                       0  otherwise,  with V = V_{t-1} + V_in_t

With V_0 = s/2 and V_thr = s, let U_t be the accumulated input and Q(U) = clamp(floor(U/s + 1/2), S_min, S_max) the
level that the neuron's quantizer gives. Then V_t = U_t + s/2 - s*S_t, so the two conditions above say S < Q(U) and
S > Q(U): the neuron *tracks its quantizer*, one level a step,

    S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -k, k)           with k = 1.

k > 1 (graded spikes) has the same fixed point. So has a neuron that may not fire before some step.
"""

import torch


def track(target: torch.Tensor, tracer: torch.Tensor, max_spikes: int = 1, closed_steps: int = 0) -> torch.Tensor:
    """Tracer form: levels S_t after each of T steps, from the quantizer's levels of the accumulated inputs.

    Args:
        target: (T, B, ...) integer levels Q(U_t).
        tracer: (B, ...) levels S_0 before the first of these steps, same type (`LSQQuantizer.level_dtype`, which
            holds differences of two levels without wrapping).
        max_spikes: k, most spikes a step.
        closed_steps: the first so many steps the neuron may not fire.

    Returns:
        (T, B, ...) levels; the spikes of step t are `levels[t] - levels[t-1]`.
    """
    levels = torch.empty_like(target)
    for t in range(target.shape[0]):
        if t >= closed_steps:
            tracer = tracer + (target[t] - tracer).clamp(-max_spikes, max_spikes)
        levels[t] = tracer
    return levels


def pending_spikes(
    membrane: torch.Tensor, tracer: torch.Tensor, threshold: torch.Tensor, min_level: int, max_level: int
) -> torch.Tensor:
    """Spikes (signed, any number) that separate a neuron with membrane V from rest: Q(U) - S.

    Args:
        membrane: (B, ...) potential V_{t-1} + V_in_t.
        tracer: (B, ...) levels S_{t-1}, whole numbers in the membrane's type.
        threshold: V_thr = s, (1,) or (features,).
    """
    return (tracer + torch.floor(membrane / threshold)).clamp(min_level, max_level) - tracer
