"""To a quantized twin from an ordinary model or a file of the paper's code; scales, schedule and certificate."""

from spikezip_hf.conversion.ann import quantize_ann
from spikezip_hf.conversion.calibration import calibrate
from spikezip_hf.conversion.certificate import Certificate, verify_equivalence
from spikezip_hf.conversion.reference import ImportReport, read_reference
from spikezip_hf.conversion.schedules import calibrate_schedule
from spikezip_hf.conversion.spikingjelly import StepInputs, step_inputs, to_spikingjelly

__all__ = [
    "Certificate",
    "ImportReport",
    "StepInputs",
    "calibrate",
    "calibrate_schedule",
    "quantize_ann",
    "read_reference",
    "step_inputs",
    "to_spikingjelly",
    "verify_equivalence",
]
