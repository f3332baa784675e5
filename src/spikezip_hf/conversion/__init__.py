"""From an ordinary model to its quantized twin, scales from data, schedule and certificate of a spiking twin."""

from spikezip_hf.conversion.ann import quantize_ann
from spikezip_hf.conversion.calibration import calibrate
from spikezip_hf.conversion.certificate import Certificate, verify_equivalence
from spikezip_hf.conversion.schedules import calibrate_schedule

__all__ = ["Certificate", "calibrate", "calibrate_schedule", "quantize_ann", "verify_equivalence"]
