"""`python -m spikezip_hf`, which is `spikezip`: what launchers of several processes can start."""

from spikezip_hf.cli import main

main()
