"""Random mutations of file contents, for fuzzing."""

import random


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Change a few bytes, delete or duplicate a piece, or truncate."""
    content = bytearray(content)
    kind = rng.randrange(4)
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.randrange(1, 20))
    if kind == 0:
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    elif kind == 1:
        del content[start:end]
    elif kind == 2:
        content[start:start] = content[start:end]
    else:
        del content[start:]
    return bytes(content)
