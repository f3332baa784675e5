"""The life of a network by recipe: fine-tuning with ReLU, quantization-aware training, conversion.

What the scripts in `training/` call. A recipe is a YAML file; see `parsing`.
"""
