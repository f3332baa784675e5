"""Data sets, ready for training and evaluation.

Names are imported when they are asked for: text needs neither an image library nor scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spikezip_hf.data.digits import load_digits
    from spikezip_hf.data.event_augmentation import event_transforms
    from spikezip_hf.data.event_files import read_events
    from spikezip_hf.data.events import from_tonic, load_events, split_off_test
    from spikezip_hf.data.images import load_images
    from spikezip_hf.data.sources import find_data, with_validation
    from spikezip_hf.data.text import load_text
    from spikezip_hf.data.transforms import image_transforms

__all__ = [
    "event_transforms",
    "find_data",
    "from_tonic",
    "image_transforms",
    "load_digits",
    "load_events",
    "load_images",
    "load_text",
    "read_events",
    "split_off_test",
    "with_validation",
]

_HOMES = {
    "event_transforms": "event_augmentation",
    "find_data": "sources",
    "from_tonic": "events",
    "image_transforms": "transforms",
    "load_digits": "digits",
    "load_events": "events",
    "load_images": "images",
    "load_text": "text",
    "read_events": "event_files",
    "split_off_test": "events",
    "with_validation": "sources",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
