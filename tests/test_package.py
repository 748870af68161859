"""The public names of the package, and the size of its core."""

import subprocess
import sys
from pathlib import Path

import vaekit

PACKAGE = Path(vaekit.__file__).parent
# Of model/: each is read on its own, by those who need it (docs/design/0031-deep-hierarchy.md).
FAMILIES = {"flows.py", "residual.py", "mixtures.py", "ladder.py"}


def test_dir_lists_the_public_names_which_all_exist():
    assert dir(vaekit) == sorted(vaekit.__all__)
    for name in vaekit.__all__:
        assert getattr(vaekit, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(vaekit, "trian")


def test_importing_the_package_imports_no_torch():
    code = "import sys, vaekit, vaekit.settings.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def lines_of(file):
    return sum(bool(line.strip()) for line in file.read_text().splitlines())


def test_the_core_can_be_read_in_an_hour():
    model = list((PACKAGE / "model").rglob("*.py"))
    core = [file for file in model if file.name not in FAMILIES]
    core += [PACKAGE / "training" / name for name in ("loop.py", "step.py")]
    assert 1500 < sum(map(lines_of, core)) < 2000
    for file in model:
        assert lines_of(file) <= 350, file
