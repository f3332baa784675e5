"""The Hub life of a model: its card, what is known of its answers, and pushing it."""

from spikezip_hf.hub.card_data import SpikeCardData
from spikezip_hf.hub.cards import model_card, save_card, write_card
from spikezip_hf.hub.push import push_folder, push_model
from spikezip_hf.hub.results import network_digest, read_results, results_of_metrics

__all__ = [
    "SpikeCardData",
    "model_card",
    "network_digest",
    "push_folder",
    "push_model",
    "read_results",
    "results_of_metrics",
    "save_card",
    "write_card",
]
