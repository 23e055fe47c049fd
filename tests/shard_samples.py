"""What tests of shards share."""

import re

import numpy as np

from davit.data.folder import ClassFolder
from davit.data.shards import Shards


def shards_of(images: Shards) -> list[str]:
    """File name of the shard of each sample."""
    return [re.search(r"\d+\.tar", images.name(index)).group() for index in range(len(images))]


def assert_same(images: Shards, original: ClassFolder) -> None:
    assert images.classes == original.classes
    assert len(images) == len(original)
    assert images.names() == original.names()
    for index in range(len(original)):
        (picture, label), (expected, its_label) = images[index], original[index]
        assert label == its_label
        assert picture.mode == expected.mode
        assert np.array_equal(picture, expected)
        assert images.encoded(index) == original.encoded(index)
