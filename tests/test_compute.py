"""Devices and matrix products."""

import platform
import subprocess
import sys

import pytest
import torch

from vaekit import UserError
from vaekit.support import devices as compute
from vaekit.support.devices import fast_float32, find_device, matmul_error, seeded

CPU = torch.device("cpu")


def test_the_fast_route_is_taken_only_where_it_is_float32_and_left_again(monkeypatch):
    assert torch.get_float32_matmul_precision() == "highest"
    assert matmul_error(CPU) < 1e-6
    with fast_float32(CPU):
        assert matmul_error(CPU) < 1e-5
    monkeypatch.setattr(compute, "matmul_error", lambda device: 1e-3)  # bfloat16 inside
    with fast_float32(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setattr(compute, "matmul_error", lambda device: 1e-7)
    with fast_float32(CPU):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_error_of_a_bfloat16_product_is_seen(monkeypatch):
    original = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, *a: original(self, *a) if a[0] != CPU else self.bfloat16().float(),
    )
    assert matmul_error(CPU) > 1e-4


def test_seeded_noise_leaves_the_noise_outside_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeded(5, CPU):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeded(5):
        assert torch.equal(torch.rand(2), inside)


def test_seeding_for_one_device_leaves_the_others_alone(monkeypatch):
    seeded_gpus = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded_gpus.append)
    with seeded(5):
        torch.rand(2)
    assert seeded_gpus == []


def test_devices():
    assert find_device("cpu") == CPU
    assert find_device("auto").type in ("cpu", "cuda", "mps")
    for name, said in [
        ("gpu", "is no device"),
        ("cuda:99", "not on this machine"),
        ("meta", "not"),
    ]:
        with pytest.raises(UserError, match=said):
            find_device(name)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep no memory")
@pytest.mark.parametrize("limit", [2**40, 2**20])
def test_memory_is_kept_up_to_a_limit(limit):
    """200 MB in pieces that lie below one that stays: kept for the next tensors, or given back."""
    code = (
        "import torch\n"
        "from vaekit.support.devices import memory_kept, resident\n"
        f"with memory_kept({limit}) as tidy:\n"
        "    pieces = [torch.ones(2**20) for _ in range(50)]\n"
        "    above, full = torch.ones(2**16), resident()\n"
        "    del pieces\n"
        "    tidy()\n"
        "    print(full - resident())\n"
        "print(full - resident())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    inside, afterwards = map(int, done.stdout.split())
    assert (inside < 2**25) == (limit == 2**40)
    assert afterwards > 2**27
