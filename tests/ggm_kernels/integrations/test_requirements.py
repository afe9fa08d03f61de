"""What is imported when, and what is said where a library is missing or too old."""

import importlib.metadata
import subprocess
import sys

import pytest
from clients import pins

from ggm_kernels.integrations import requirements

LIBRARIES = ("diffusers", "transformers")
# In a process of its own: what this one has imported is imported.
PROGRAM = f"""
import importlib.metadata as metadata, sys
import ggm_kernels
print([m for m in sys.modules if m.split(".")[0] in {LIBRARIES} or m.startswith("ggm_kernels.integrations")])
def version(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = version
for library in {LIBRARIES}:
    try:
        __import__("ggm_kernels.integrations." + library)
    except ImportError as error:
        print(error)
"""


def test_the_package_imports_no_client_and_a_missing_one_is_one_line():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    wanted = [
        f"{library}>={pins(library)[0]} is needed and not installed: pip install 'ggm-kernels[{library}]'"
        for library in LIBRARIES
    ]
    assert done.stdout.splitlines() == ["[]", *wanted]


@pytest.mark.parametrize("version, is_old", [("0.41.3", True), ("0.42.0", False), ("1.0.0.dev0", False)])
def test_an_old_library_is_named(monkeypatch, version, is_old):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    if not is_old:
        requirements.need("diffusers", "0.42")
        return
    with pytest.raises(ImportError, match=r"diffusers>=0.42 is needed, and 0.41.3 is installed: pip"):
        requirements.need("diffusers", "0.42")
