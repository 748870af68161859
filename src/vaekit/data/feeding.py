"""The batches of an epoch; those that lie in a file are read ahead, while the step before them is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from .dataset import Batch, Split
from .stored import Stored

AHEAD = 4


def batches(split: Split, indices: Iterable[Tensor]) -> Iterator[Batch]:
    """The images at each of `indices`, on the split's device."""
    if not isinstance(split.images, Stored):
        yield from (split[chosen] for chosen in indices)
        return
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for chosen in indices:
            waiting.append(reader.submit(split.__getitem__, chosen))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
