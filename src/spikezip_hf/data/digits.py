"""scikit-learn's digits: 1797 real 8x8 images of handwritten digits that come with the package."""

import numpy as np

try:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from sklearn.datasets import load_digits as load_sklearn_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise ImportError(
        f"The digits need more than the models do ({error}): pip install 'spikezip-hf[demo]'."
    ) from error


def load_digits(seed: int = 0) -> DatasetDict:
    """The digits as 8x8 RGB images, split into "train" (four fifths) and "test" (one fifth), stratified by class.

    Args:
        seed: of the split.
    """
    digits = load_sklearn_digits()
    # Gray levels 0..16 to 0..255; three channels, as image processors and pipelines expect.
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(name) for name in digits.target_names])})
    train, test = train_test_split(np.arange(len(pixels)), test_size=0.2, random_state=seed, stratify=digits.target)
    return DatasetDict(
        {
            name: Dataset.from_dict({"image": list(pixels[rows]), "label": digits.target[rows]}, features=features)
            for name, rows in (("train", np.sort(train)), ("test", np.sort(test)))
        }
    )
