"""Real releases for the tests: the sources of published wheels, downloaded once and kept in a cache folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def _download(package: str, version: str, folder: Path) -> None:
    wheels = folder / "wheel"
    wheels.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    target = ["--python-version", "3.11", "--implementation", "cp", "--dest", str(wheels), f"{package}=={version}"]
    platforms = [arg for n in (35, 34, 31, 28, 17) for arg in ("--platform", f"manylinux_2_{n}_x86_64")]
    subprocess.run([*pip, *platforms, *target], check=True, timeout=600)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        names = [n for n in wheel.namelist() if n.endswith(".py") and n.startswith(f"{package}/")]
        wheel.extractall(folder, names)
    for wheel_file in wheels.glob("*.whl"):
        wheel_file.unlink()
    (folder / "complete").touch()
