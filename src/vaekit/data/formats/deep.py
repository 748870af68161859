"""Files of more than 8 bits whose values Pillow scales, or reads as 8 bits: PGM, PPM and JPEG 2000."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

SIZ = b"\xff\x4f\xff\x51"  # the start of a JPEG 2000 codestream
COMPONENT = 40  # from its start: of each component the bits, less one, and the highest bit if they are signed


def deep_type(image: Any, content: bytes) -> Literal["uint16", "int16"] | None:
    """The type that keeps the values of a file opened by Pillow; None for other formats, and for 8 bits."""
    if image.format == "PPM" and image.mode in ("I", "RGB") and image.tile and content:
        return "uint16" if largest(image) > 255 else None
    at = content.find(SIZ) if image.format == "JPEG2000" else -1
    if at < 0 or content[at + 2 + COMPONENT] & 127 < 8:
        return None
    return "int16" if content[at + 2 + COMPONENT] & 128 else "uint16"


def largest(image: Any) -> int:
    """The value of white in a PGM or PPM file."""
    arguments = image.tile[0][3]
    if isinstance(arguments, tuple):
        return int(arguments[1])
    return 65535 if arguments == "I;16B" else 255


def read_deep(image: Any, content: bytes) -> np.ndarray:
    """The values of a file with a `deep_type`, (H, W) or (H, W, C). Raises ImportError without imagecodecs, and any
    other error for a damaged file."""
    if image.format == "JPEG2000":
        from imagecodecs import jpeg2k_decode

        array: np.ndarray = jpeg2k_decode(content)
        if array.shape[2:] in ((2,), (4,)):
            raise ValueError("it has more than 8 bits and transparency; save it as PNG")
        return array
    codec, _, offset, *_ = image.tile[0]
    channels = 1 if image.mode == "I" else 3
    shape = (image.height, image.width, channels)
    count = image.height * image.width * channels
    if codec == "ppm_plain":
        values = np.array(content[offset:].split()[:count]).astype(np.uint16)
    else:
        values = np.frombuffer(content, ">u2", count, offset).astype(np.uint16)
    return values.reshape(shape)
