"""The batches of an epoch; images in a file are read ahead, during the steps before them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from .dataset import Batch, Split
from .stored import StoredImages

PREFETCH = 4


def batches(split: Split, indices: Iterable[Tensor]) -> Iterator[Batch]:
    """Yield the batch at each of `indices`, on the split's device."""
    if not isinstance(split.images, StoredImages):
        yield from (split[rows] for rows in indices)
        return
    queue: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for rows in indices:
            queue.append(reader.submit(split.__getitem__, rows))
            if len(queue) > PREFETCH:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
