"""Quantize a trained network and train that: train_qat.py RECIPE.yaml [--FLAG VALUE ...]"""

from spikezip_hf.recipes import qat
from spikezip_hf.recipes.parsing import main

if __name__ == "__main__":
    main(qat.main)
