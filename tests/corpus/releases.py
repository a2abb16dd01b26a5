"""Real releases for the tests: the sources of published wheels, downloaded once and kept in a cache folder.

Each is judged once for all tests that ask about it as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

from moe_lint.engine import Options, run
from moe_lint.model import Confidence, Finding, Report
from moe_lint.profile import load_profile
from moe_lint.rules import all_rules

_CACHE = Path(os.environ.get("MOE_LINT_CORPUS", Path(__file__).parents[2] / ".corpus"))


def release(version: str, package: str = "sglang") -> Path:
    """The folder with a release's Python sources. Skips the test without a network, fails it under CI=true."""
    folder = _CACHE / (version if package == "sglang" else f"{package}-{version}")
    if not (folder / "complete").exists():
        try:
            _download(package, version, folder)
        except (subprocess.CalledProcessError, OSError) as error:
            message = f"{package} {version} could not be downloaded: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
    return folder


def judged(version: str, package: str = "sglang") -> Report:
    """What all rules say of a release, and whether each of its sums is made exactly once."""
    return _judged(version, package)


@cache
def _judged(version: str, package: str) -> Report:
    tree = str(release(version, package) / package)
    return run(Options((tree,), load_profile(package), select=("ALL",), law=True))


def findings(version: str, package: str = "sglang") -> tuple[Finding, ...]:
    """What a run finds by default (`test_releases.py` holds it to that)."""
    by_default = {rule.code for rule in all_rules() if rule.on_by_default}
    found = judged(version, package).findings
    return tuple(f for f in found if f.rule in by_default and f.confidence is not Confidence.LOW)


def _download(package: str, version: str, folder: Path) -> None:
    """Fetch a release beside the folder and put it there whole: other test processes may want it at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as own:
        wheels, tree = Path(own, "wheel"), Path(own, "tree")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        target = ["--python-version", "3.11", "--implementation", "cp", "--dest", str(wheels), f"{package}=={version}"]
        platforms = [arg for n in (35, 34, 31, 28, 17) for arg in ("--platform", f"manylinux_2_{n}_x86_64")]
        subprocess.run([*pip, *platforms, *target], check=True, timeout=600)
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            names = [n for n in wheel.namelist() if n.endswith(".py") and n.startswith(f"{package}/")]
            wheel.extractall(tree, names)
        (tree / "complete").touch()
        if folder.exists() and not (folder / "complete").exists():
            shutil.rmtree(folder)  # begun and never finished
        try:
            tree.rename(folder)
        except OSError:
            if not (folder / "complete").exists():
                raise
