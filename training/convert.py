"""Convert a trained Quant model to spikes and compare the networks: convert.py RECIPE.yaml [--FLAG VALUE ...]"""

from spikezip_hf.recipes import convert
from spikezip_hf.recipes.parsing import main

if __name__ == "__main__":
    main(convert.main)
