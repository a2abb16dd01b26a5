"""The tree's fused kernels, computed with torch. Bound by the kernel's name, in whatever module a tree keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

FUNCTIONS: Mapping[str, Callable[..., Any]] = {}
