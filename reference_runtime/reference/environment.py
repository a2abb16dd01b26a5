"""What a server would have set up: its arguments, the batch's metadata, the platform."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

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

    #: field -> dotted name of the group of settings that it is published in; for trees that have such groups
    namespaces: ClassVar[Mapping[str, str]] = {}
    #: the classes of the tree that declare such groups: they say what follows from the arguments
    _NAMESPACES: ClassVar[tuple[type, ...]] = ()

    @classmethod
    def of_tree(cls, namespaces: Mapping[str, str]) -> type[ServerArguments]:
        """The class for one tree."""
        return type("ServerArgs", (cls,), {"namespaces": namespaces})

    def __init__(self, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        self.__dict__.update(defaults)
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = Stub(f"ServerArgs.{name}")  # declared without a plain default, or computed
        self.__dict__[name] = value
        return value

    @classmethod
    def settle(cls, groups: Iterable[type]) -> None:
        """Name the classes that declare groups of settings."""
        cls._NAMESPACES = tuple(groups)

    def resolve_once(self) -> None:
        """Nothing to do: the run says what every argument resolves to."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What a tree declares about its server arguments, read and not run.

    Attributes:
        names: all fields.
        defaults: field -> default, where it is plain.
        namespaces: field -> the group of settings that it is published in.
    """

    names: frozenset[str]
    defaults: Mapping[str, Any]
    namespaces: Mapping[str, str]


@functools.lru_cache(maxsize=8)
def declared(files: tuple[Path, ...]) -> Declared:
    """The fields of `ServerArgs`, and of every class that names a group of settings, in those files."""
    names: set[str] = set()
    defaults: dict[str, Any] = {}
    namespaces: dict[str, str] = {}
    for file in files:
        for node in ast.parse(file.read_bytes()).body:
            group = _group(node) if isinstance(node, ast.ClassDef) else None
            if not isinstance(node, ast.ClassDef) or (group is None and node.name != "ServerArgs"):
                continue
            for field in node.body:
                if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                    continue
                name = field.target.id
                names.add(name)
                namespace = _marked(field.annotation) or group
                if namespace is not None:
                    namespaces[name] = namespace
                known, value = _plain(field.value)
                if known:
                    defaults[name] = value
    return Declared(frozenset(names), defaults, namespaces)


def _group(node: ast.ClassDef) -> str | None:
    """The group of settings that a class stands for: `_NS_PATH = "exec.moe"`."""
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if "_NS_PATH" in names and isinstance(statement.value.value, str):
                return statement.value.value
    return None


def _marked(annotation: ast.expr) -> str | None:
    """The group in an annotation: `A[int, "help", NS("parallel")]`."""
    for node in ast.walk(annotation):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "NS":
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                return node.args[0].value
    return None


def _plain(value: ast.expr | None) -> tuple[bool, Any]:
    """(whether a default is plain, the default)."""
    if isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg == "default":
                return _plain(keyword.value)
            if keyword.arg == "default_factory" and isinstance(keyword.value, ast.Name):
                makers: dict[str, Callable[[], Any]] = {"list": list, "dict": dict, "set": set}
                maker = makers.get(keyword.value.id)
                return maker is not None, maker() if maker is not None else None
        return False, None
    try:
        return (False, None) if value is None else (True, ast.literal_eval(value))
    except ValueError:
        return False, None


def install_server_args(space: ModuleSpace, module: types.ModuleType) -> None:
    """The module that holds the server arguments."""
    context = space.context
    module.__dict__.update(
        ServerArgs=type(context.server_arguments),
        get_global_server_args=lambda: context.server_arguments,
        get_server_args=lambda: context.server_arguments,
        set_global_server_args_for_scheduler=lambda *_: None,
    )


def patch_argument_groups(space: ModuleSpace, module: types.ModuleType) -> None:
    """Where the tree asks which group of settings an argument belongs to."""
    original = module.__dict__.get("namespace_of")
    if original is not None:
        module.__dict__["namespace_of"] = lambda cls: (
            cls.namespaces if issubclass(cls, ServerArguments) else original(cls)
        )


def install_resolution(space: ModuleSpace, module: types.ModuleType) -> None:
    """What the server resolved its arguments to: the arguments of the run are resolved."""
    module.__dict__.update(
        resolution_result=lambda arguments, name, default=None: getattr(arguments, name, default),
        resolved_view=lambda arguments: arguments,
        resolving_view=lambda arguments: arguments,
        ep_joiner_of=_no,
        ep_scale_joiner_of=_no,
        max_speculative_num_draft_tokens=lambda *_: None,
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
