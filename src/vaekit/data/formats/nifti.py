"""NIfTI volumes (.nii, .nii.gz) through `nibabel`: each axial slice is an image."""

from __future__ import annotations

import gzip
import io
import math
from typing import Any

import numpy as np

from ...support.errors import UserError, reason
from .images import MAX_PAGE_BYTES, BadImage, check_page_bytes, check_pixel_count


class Volume:
    """The axial slices of a volume, from foot to head: its axes are brought to right, anterior, superior, as the affine
    says, so that left is left and anterior is up; values are scaled as the header says (scl_slope, scl_inter).

    Raises BadImage for what is no volume, and UserError without nibabel.
    """

    noun = "slices"

    def __init__(self, content: bytes) -> None:
        try:
            import nibabel
        except ImportError:
            raise UserError("a .nii file needs nibabel: pip install 'vaekit[science]'") from None
        try:
            if content.startswith(b"\x1f\x8b"):
                with gzip.open(io.BytesIO(content)) as file:
                    content = file.read(MAX_PAGE_BYTES + 1)
            kind = (
                nibabel.Nifti2Image if content[4:8] in (b"n+2\0", b"ni2\0") else nibabel.Nifti1Image
            )
            image = kind.from_bytes(content)
            shape, dtype = image.shape, image.get_data_dtype()
            proxy: Any = image.dataobj
            offset = proxy.offset
        except Exception as error:  # anything, on damaged files
            raise BadImage(f"it is no NIfTI volume ({reason(error)})") from None
        if dtype.kind not in "uif":
            raise BadImage(f"it has values of type {dtype}, not numbers")
        if len(shape) < 3 or min(shape) < 1 or math.prod(shape[3:]) > 1:
            raise BadImage(
                f"it has the shape {shape}; a volume has three axes, so save its volumes one by one"
            )
        check_pixel_count(*shape[:2])
        check_page_bytes(1, math.prod(shape) * 8)
        if len(content) < offset + math.prod(shape) * dtype.itemsize:
            raise BadImage("it is truncated")
        self.image = nibabel.as_closest_canonical(image)
        self.count = int(self.image.shape[2])

    def read(self, first_only: bool = False) -> list[np.ndarray]:
        try:
            array = np.asanyarray(self.image.dataobj)
        except Exception as error:
            raise BadImage(reason(error)) from None
        array = array.reshape(array.shape[:3])
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        numbers = range(1 if first_only else self.count)
        return [np.ascontiguousarray(array[:, ::-1, k].T[None]) for k in numbers]
