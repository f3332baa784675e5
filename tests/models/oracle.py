"""The paper's Eq. 1 and Eq. A16, written out for one neuron in whatever numbers they are given."""

import math


def st_bif_plus(inputs, threshold, s_min, s_max, v_0=None):
    """Eq. 1, line by line. Yields (theta, S_t, V_t) for each input current."""
    v = threshold / 2 if v_0 is None else v_0
    s = 0
    for v_in in inputs:
        charged = v + v_in
        if charged >= threshold and s < s_max:
            theta = 1
        elif charged < 0 and s > s_min:
            theta = -1
        else:
            theta = 0
        v = charged - threshold * theta
        s = s + theta
        yield theta, s, v


def equilibrium_level(accumulated, threshold, s_min, s_max):
    """Eq. A16 with V_0 = V_thr / 2."""
    return min(max(math.floor((accumulated + threshold / 2) / threshold), s_min), s_max)
