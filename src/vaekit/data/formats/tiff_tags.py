"""Which TIFF pages Pillow reads exactly, by their tags."""

from __future__ import annotations

import re
from typing import Any

DESCRIPTION, EXTRA_SAMPLES, ORIENTATION = 270, 338, 274  # as in EXIF; 5 to 8 swap height and width
BITS, PHOTOMETRIC, SAMPLES, SAMPLE_FORMAT = 258, 262, 277, 339
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
# Numbers of samples of 8 bits or fewer that Pillow reads as they are meant, by photometric interpretation.
PLAIN_SAMPLES = {WHITE_IS_ZERO: {1}, GREY: {1}, RGB: {3}, PALETTE: {1}, CMYK: {4}, YCBCR: {1, 3}, LAB: {3}}  # fmt: skip
# Deeper ones of one sample: (photometric interpretation, sample format, bits).
PLAIN_DEEP = {(GREY, 1, 12), (GREY, 1, 16), (GREY, 2, 16), (GREY, 2, 32), (GREY, 3, 32)}
ALPHA = ((1,), (2,), (999,))


def is_plain_image(image: Any) -> bool:
    """Whether Pillow reads all of a TIFF file that it has opened, exactly: one page, grey, colour or a palette."""
    tags = image.tag_v2
    # ImageJ writes stacks over 4 GB as one page. A next page may be there and unreadable, which Pillow takes for none.
    images = re.search(r"^images=(\d+)", str(tags.get(DESCRIPTION, "")), re.MULTILINE)
    alone = tags.next == 0 and (images is None or images[1] == "1")
    return alone and is_plain_page(
        tags.get(PHOTOMETRIC, WHITE_IS_ZERO),
        tags.get(SAMPLE_FORMAT, (1,)),
        tags.get(BITS, (1,)),
        tags.get(SAMPLES, 1),
        tags.get(EXTRA_SAMPLES, ()),
    )


def is_plain_page(
    photometric: int,
    sample_format: tuple[int, ...],
    bits: tuple[int, ...],
    samples: int,
    extra: tuple[int, ...],
) -> bool:
    if samples == 1 and (photometric, sample_format[0], bits[0]) in PLAIN_DEEP:
        return True
    if max(bits) > 8 or {*sample_format} != {1}:
        return False
    if extra:  # grey, colour or a palette with transparency
        return extra in ALPHA and photometric in (GREY, RGB, PALETTE) and (
            samples - 1 in PLAIN_SAMPLES[photometric]
        )  # fmt: skip
    return samples in PLAIN_SAMPLES.get(photometric, ()) or (photometric == RGB and samples == 4)
