"""From an ordinary model to its quantized twin, its scales from data, and the certificate of the spiking twin."""

from spikezip_hf.conversion.ann import quantize_ann
from spikezip_hf.conversion.calibration import calibrate
from spikezip_hf.conversion.certificate import Certificate, verify_equivalence

__all__ = ["Certificate", "calibrate", "quantize_ann", "verify_equivalence"]
