"""The part of `msgspec` that engines declare their plain data with: `Struct`, `field`, `structs.replace`."""

from __future__ import annotations

import copy
import inspect
import types
from typing import TYPE_CHECKING, Any, dataclass_transform

if TYPE_CHECKING:
    from reference_runtime.space import ModuleSpace

NODEFAULT: Any = type("NODEFAULT", (), {"__repr__": lambda self: "NODEFAULT"})()


class Field:
    """A field whose default is not written as a plain value."""

    def __init__(self, *, default: Any = NODEFAULT, default_factory: Any = NODEFAULT, name: str | None = None) -> None:
        self.default, self.default_factory, self.name = default, default_factory, name

    def value(self) -> Any:
        """The default, or NODEFAULT."""
        if self.default_factory is not NODEFAULT:
            return self.default_factory()
        return copy.copy(self.default)


@dataclass_transform(field_specifiers=(Field,))
class StructType(type):
    """Turns the annotations of a class into fields. A field is no attribute of the class."""

    __struct_fields__: tuple[str, ...]
    _defaults: dict[str, Field]
    _frozen: bool

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> StructType:
        cls = super().__new__(mcs, name, bases, namespace)
        defaults: dict[str, Field] = {}
        for base in reversed(cls.__mro__[1:]):
            defaults.update(base.__dict__.get("_defaults", {}))
        for field, annotation in inspect.get_annotations(cls).items():
            if str(annotation).startswith(("ClassVar", "typing.ClassVar")):
                continue
            default = namespace.get(field, NODEFAULT)
            defaults[field] = default if isinstance(default, Field) else Field(default=default)
            if field in cls.__dict__:
                type.__delattr__(cls, field)
        cls._defaults, cls.__struct_fields__ = defaults, tuple(defaults)
        cls._frozen = bool(options.get("frozen", getattr(cls, "_frozen", False)))
        return cls

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, namespace)


class Struct(metaclass=StructType):
    """Values by name. Equal if the values are; a frozen one cannot be assigned to."""

    def __init__(self, *args: Any, **given: Any) -> None:
        kind = type(self)
        values = {**dict(zip(kind.__struct_fields__, args, strict=False)), **given}
        unknown = values.keys() - set(kind.__struct_fields__)
        if unknown or len(args) > len(kind.__struct_fields__):
            raise TypeError(f"Unexpected keyword argument {sorted(unknown)!r} of {kind.__name__}")
        for name, field in kind._defaults.items():
            value = values[name] if name in values else field.value()
            if value is NODEFAULT:
                raise TypeError(f"Missing required argument {name!r} of {kind.__name__}")
            object.__setattr__(self, name, value)
        after = getattr(self, "__post_init__", None)
        if after is not None:
            after()

    def __setattr__(self, name: str, value: Any) -> None:
        if type(self)._frozen:
            raise AttributeError(f"immutable type: {type(self).__name__!r}")
        object.__setattr__(self, name, value)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self).__struct_fields__)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Struct) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values())) if type(self)._frozen else id(self)

    def __repr__(self) -> str:
        pairs = zip(type(self).__struct_fields__, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in pairs)})"


def replace(struct: Struct, /, **changes: Any) -> Struct:
    """A copy with other values in some fields."""
    return type(struct)(**{**dict(zip(type(struct).__struct_fields__, struct._values(), strict=True)), **changes})


def install(space: ModuleSpace, module: types.ModuleType) -> None:
    """Fill `msgspec`."""
    module.__dict__.update(Struct=Struct, field=Field, NODEFAULT=NODEFAULT)


def install_structs(space: ModuleSpace, module: types.ModuleType) -> None:
    """Fill `msgspec.structs`."""
    module.__dict__.update(replace=replace, force_setattr=object.__setattr__)
