"""Splits whose images are encoded, in files or elsewhere, and are read and decoded one at a time."""

import hashlib
from abc import abstractmethod
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from typing import Any, BinaryIO, Final, Self

from torch import Tensor

from avtcli.contracts import MAX_PIXELS, ImageData, Split
from avtplugins.datasets._decoding import AS_PUBLISHED, Decoding, decode_image, describe_image

MAX_BYTES: Final = 8 * MAX_PIXELS
"""The most bytes of an encoded image: those of an uncompressed one of four 16-bit channels."""


class EncodedSplit(Split):
    """A split that decodes its images.

    Attributes:
        how: they are decoded.
        digest: a hash of what the split states of its images, in order, such as names, sizes and labels.
    """

    images: Tensor | None = None
    how: Decoding = AS_PUBLISHED
    digest: bytes

    @abstractmethod
    def opened(self, i: int) -> AbstractContextManager[tuple[BinaryIO, str]]:
        """Open image i, at most `MAX_BYTES`, with its name for messages.

        Raises:
            AvtError: naming the image, if it cannot be read.
        """

    def decoded(self, how: Decoding) -> Self:
        """Return the split with its images decoded otherwise."""
        other = copy(self)
        other.how = how
        return other

    def resized(self, shorter: int) -> Self:
        """Large JPEGs that may be reduced are decoded to twice the size or more."""
        return self.decoded(replace(self.how, at_least=2 * shorter)) if self.how.may_reduce else self

    def read(self, i: int) -> Tensor:
        """Image i, uint8 (C, H, W); see `decode_image`.

        Raises:
            AvtError: naming the image, if it cannot be read or does not decode.
        """
        with self.opened(i) as (file, name):
            return decode_image(file, name=name, how=self.how)

    def describe(self, i: int) -> str:
        """Format and mode of image i, from its header."""
        with self.opened(i) as (file, name):
            return describe_image(file, name=name)


def encoded_data(train: EncodedSplit, test: EncodedSplit | None, **facts: Any) -> ImageData:
    """Make a data set of encoded images; its fingerprint is a hash of what the splits state of them."""
    digests = b"".join(split.digest for split in (train, test) if split is not None)
    fingerprint = hashlib.blake2b(digests, digest_size=16).hexdigest()
    return ImageData(train, test, channels=train.how.channels, size=None, fingerprint=fingerprint, **facts)
