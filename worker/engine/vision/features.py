"""Embeddings of images, by the contents of their files: the least recently used go when there are too many."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

Features = Sequence[Tensor]  # [tokens, hidden] for the input, then for each later layer that adds some


class FeatureCache:
    """Keeps up to so many bytes, and always the newest image."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[bytes, Features] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._held

    def get(self, digest: bytes) -> Features | None:
        """The embeddings of an image, which counts as used now."""
        found = self._held.get(digest)
        if found is not None:
            self._held.move_to_end(digest)
        return found

    def clear(self) -> None:
        """Let all go."""
        self._held.clear()
        self.num_bytes = 0

    def put(self, digest: bytes, features: Features) -> None:
        """Keep these, and let others go for them."""
        if digest in self._held:
            self.num_bytes -= _size(self._held.pop(digest))
        self._held[digest] = features
        self.num_bytes += _size(features)
        while self.num_bytes > self._max_bytes and len(self._held) > 1:
            _, gone = self._held.popitem(last=False)
            self.num_bytes -= _size(gone)


def _size(features: Features) -> int:
    return sum(tensor.nbytes for tensor in features)
