"""What a server would have set up: its arguments, the batch's metadata, the platform."""

from __future__ import annotations

import ast
import functools
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference_runtime.space import LOCK
from reference_runtime.stubs import Stub

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace

#: Platform questions and their answers: plain torch, no vendor kernels, whatever machine this is.
_PLATFORM = (
    "is_cuda", "is_cuda_alike", "is_hip", "is_npu", "is_xpu", "is_hpu", "is_cpu", "is_musa", "is_mps", "is_blackwell",
    "is_flashinfer_available", "cpu_has_amx_support", "use_intel_amx_backend", "is_sm90_supported", "is_hopper",
    "is_sm100_supported", "is_sm120_supported", "is_gfx95_supported", "is_blackwell_supported", "is_arm",
    "is_host_cpu_arm64", "is_nvidia_cublas_cu12_version_ge_12_9", "use_intel_xpu_backend", "is_tpu",
)  # fmt: skip


class ServerArguments:
    """The engine's server arguments: what the run sets, else the defaults that the tree's own class declares."""

    def __init__(self, defaults: dict[str, Any], given: dict[str, Any]) -> None:
        self.__dict__.update(defaults)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = Stub(f"ServerArgs.{name}")  # declared without a plain default, or computed
        self.__dict__[name] = value
        return value


def declared_defaults(file: Path | None) -> dict[str, Any]:
    """The literal defaults of `ServerArgs` in that file, read and not run."""
    with LOCK:
        return _defaults(file) if file is not None else {}


@functools.lru_cache(maxsize=8)
def _defaults(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ClassDef) and node.name == "ServerArgs":
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
                    try:
                        found[field.target.id] = ast.literal_eval(field.value)
                    except ValueError:
                        continue
    return found


def install_server_args(space: ModuleSpace, module: types.ModuleType) -> None:
    """The module that holds the server arguments."""
    context = space.context
    module.__dict__.update(
        ServerArgs=ServerArguments,
        get_global_server_args=lambda: context.server_arguments,
        get_server_args=lambda: context.server_arguments,
        set_global_server_args_for_scheduler=lambda *_: None,
    )


def patch_platform(space: ModuleSpace, module: types.ModuleType) -> None:
    """Answer the platform questions of the tree's utilities."""
    for name in _PLATFORM:
        if name in module.__dict__:
            module.__dict__[name] = _no
    if "get_device" in module.__dict__:
        module.__dict__["get_device"] = lambda *_: str(space.context.device)


def _no(*_: Any, **__: Any) -> bool:
    return False
