"""Train an ordinary network with ReLU, or fine-tune one: finetune_relu.py RECIPE.yaml [--FLAG VALUE ...]"""

from spikezip_hf.recipes import finetune
from spikezip_hf.recipes.parsing import main

if __name__ == "__main__":
    main(finetune.main)
