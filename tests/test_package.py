"""The public names of the package."""

import subprocess
import sys

import vaekit


def test_dir_lists_the_public_names_which_all_exist():
    assert dir(vaekit) == sorted(vaekit.__all__)
    for name in vaekit.__all__:
        assert getattr(vaekit, name) is not None


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(vaekit, "trian")


def test_importing_the_package_imports_no_torch():
    code = "import sys, vaekit, vaekit.settings.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
