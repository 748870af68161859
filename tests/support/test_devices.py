"""Devices, matrix products, seeded generators and memory."""

import platform
import subprocess
import sys

import pytest
import torch

from vaekit import UserError
from vaekit.support import devices
from vaekit.support.devices import fast_float32, matmul_error, resolve_device, seeded

CPU = torch.device("cpu")


def test_fast_float32_is_used_only_where_exact_and_is_reset_afterwards(monkeypatch):
    assert torch.get_float32_matmul_precision() == "highest"
    assert matmul_error(CPU) < 1e-6
    with fast_float32(CPU):
        assert matmul_error(CPU) < 1e-5
    monkeypatch.setattr(devices, "matmul_error", lambda device: 1e-3)  # bfloat16 inside
    with fast_float32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setattr(devices, "matmul_error", lambda device: 1e-7)
    with fast_float32(CPU):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_error_of_a_bfloat16_product_is_measured(monkeypatch):
    original = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *a: original(self, *a) if a[0] != CPU else self.bfloat16().float(),
    )
    assert matmul_error(CPU) > 1e-4


def test_seeded_restores_the_generators():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(5, CPU):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(5):
        assert torch.equal(torch.rand(2), inside)


def test_seeding_for_one_device_leaves_the_others_unchanged(monkeypatch):
    seeded_gpus = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_gpus.append)
    with seeded(5):
        torch.rand(2)
    assert seeded_gpus == []


def test_device_names():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    for name, message in [
        ("gpu", "is not a device"),
        ("cuda:99", "not available on this machine"),
        ("meta", "not"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve_device(name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc")
@pytest.mark.parametrize("limit", [2**40, 2**20])
def test_freed_memory_is_kept_up_to_a_limit(limit):
    """200 MB in blocks below one that stays allocated: kept for the next tensors, or returned to the system."""
    code = (
        "import torch\n"
        "from vaekit.support.devices import keep_freed_memory, resident_bytes\n"
        f"with keep_freed_memory({limit}) as trim_memory:\n"
        "    pieces = [torch.ones(2**20) for _ in range(50)]\n"
        "    above, full = torch.ones(2**16), resident_bytes()\n"
        "    del pieces\n"
        "    trim_memory()\n"
        "    print(full - resident_bytes())\n"
        "print(full - resident_bytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    inside, afterwards = map(int, done.stdout.split())
    assert (inside < 2**25) == (limit == 2**40)
    assert afterwards > 2**27
