"""Weights in safetensors files: written, read, and compared with a model before memory is allocated for them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from ..support.errors import UserError, one_line, require
from .schema import Headers, check_weights

# What reading a damaged file of tensors raises.
DAMAGE = (safetensors.SafetensorError, OSError, ValueError)
SAFETENSORS_TYPES = {
    **{f"float{n}": f"F{n}" for n in (16, 32, 64)},
    **{f"int{n}": f"I{n}" for n in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "uint8": "U8",
    "bool": "BOOL",
}


def weights_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a weights file."""
    return safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()})


def load_weights(model: nn.Module, path: Path) -> str:
    """Load a model's weights from a safetensors file, and return the SHA-256 of the bytes read. Raises UserError where
    it is missing, damaged or does not fit."""
    with reading(path):
        content = path.read_bytes()
        tensors: dict[str, Tensor] = safetensors.torch.load(content)
    copy_weights(model, tensors, path)
    return hashlib.sha256(content).hexdigest()


def copy_weights(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Set a model's weights to those read from `path`. Raises UserError where they do not fit."""
    check_fit(model, kinds_and_shapes(tensors), path)
    model.load_state_dict(tensors)


def require_fit(model: nn.Module, path: Path) -> None:
    """Raise UserError unless a safetensors file, of which the header alone is read, has the tensors of a model, which
    may be on the meta device."""
    with reading(path):
        found = read_header(path)
    check_fit(model, found, path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise UserError where a file of weights is missing or damaged."""
    require(path.is_file(), f"{path} is missing; the run has not saved any weights yet")
    try:
        yield
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({one_line(error)}); train again, or restore it"
        ) from None


def check_fit(model: nn.Module, found: Headers, path: Path) -> None:
    """Raise UserError unless the tensors that were read from `path` are those of a model."""
    try:
        check_weights(found, kinds_and_shapes(model.state_dict()))
    except UserError as error:
        raise UserError(f"{path} does not fit the model: {error}") from None


def read_header(path: Path) -> Headers:
    """The types and shapes of the tensors in a safetensors file."""
    with safetensors.safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}


def kinds_and_shapes(tensors: Mapping[str, Tensor]) -> Headers:
    """The types, by their names in safetensors, and the shapes of tensors."""
    kinds = {name: str(t.dtype).removeprefix("torch.") for name, t in tensors.items()}
    return {
        name: (SAFETENSORS_TYPES.get(kinds[name], kinds[name]), tuple(t.shape))
        for name, t in tensors.items()
    }
