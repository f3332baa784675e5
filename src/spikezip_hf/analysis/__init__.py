"""What a simulation says, and what it costs: accuracy, spikes, operations and energy over time, and pictures of it.

`write_report` is imported when it is asked for: it needs matplotlib and pyarrow, and nothing else here does.
"""

from typing import TYPE_CHECKING, Any

from spikezip_hf.analysis.accuracy import accuracy, accuracy_over_time
from spikezip_hf.analysis.closeup import CloseUp, close_up
from spikezip_hf.analysis.costs import paper_training, simulation_costs, training_costs
from spikezip_hf.analysis.energy import EnergyReport, energy
from spikezip_hf.analysis.energy_prices import EnergyConstants
from spikezip_hf.analysis.operations import Operations, count_operations
from spikezip_hf.analysis.paper_power import paper_power_w, paper_tables
from spikezip_hf.analysis.recording import Recording, record
from spikezip_hf.analysis.time_course import time_course
from spikezip_hf.analysis.twins import compare_twins, table

if TYPE_CHECKING:
    from spikezip_hf.analysis.report import nodes_to_see, write_report

__all__ = [
    "CloseUp",
    "EnergyConstants",
    "EnergyReport",
    "Operations",
    "Recording",
    "accuracy",
    "accuracy_over_time",
    "close_up",
    "compare_twins",
    "count_operations",
    "energy",
    "nodes_to_see",
    "paper_power_w",
    "paper_tables",
    "paper_training",
    "record",
    "simulation_costs",
    "table",
    "time_course",
    "training_costs",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in ("nodes_to_see", "write_report"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spikezip_hf.analysis import report

    return getattr(report, name)
