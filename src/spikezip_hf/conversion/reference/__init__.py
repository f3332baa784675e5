"""Checkpoints of the paper's own code, and of networks in its layout, to Quant models.

The layout is that of github.com/Intelligent-Computing-Research-Group/SpikeZIP-TF: its branch main for ViT, NLU-Tasks
for RoBERTa. SpikingJelly's recipe for SpikeZIP-TF takes modules of the same attribute names, so their state dicts are
read too. That code was read to learn the layout; none of it is in here.
"""

from spikezip_hf.conversion.reference.mapping import ImportReport
from spikezip_hf.conversion.reference.reading import read_reference

__all__ = ["ImportReport", "read_reference"]
