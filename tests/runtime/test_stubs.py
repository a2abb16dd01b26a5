"""Placeholders: usable while modules load, refused as soon as something could depend on them."""

from __future__ import annotations

from typing import Optional

import pytest

torch = pytest.importorskip("torch")

from reference_runtime.stubs import Stub, StubReached, building, running, setting_up  # noqa: E402


def test_a_placeholder_serves_as_base_decorator_and_annotation() -> None:
    stub = Stub("engine.kernels")

    class Child(stub.Base):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(1, two=2)

    @stub.register(name="x")
    def function() -> None:
        """Stays unknown: nobody knows what the decorator does."""

    assert Child()
    assert isinstance(function, Stub)
    assert Optional[stub.Type] is not None  # noqa: UP045  (target code writes it so)
    assert not isinstance(3, stub.Type)


@pytest.mark.parametrize("use", [bool, list, len, int, float, lambda s: s == 1, lambda s: 1 in s, lambda s: s > 1])
def test_while_a_model_is_built_no_decision_may_hang_on_one(use: object) -> None:
    assert callable(use)
    stub = Stub("engine.flag")
    with building():
        stored = stub(1)  # may be called and kept
        with pytest.raises(StubReached, match=r"engine\.flag"):
            use(stored)


def test_while_a_model_runs_it_may_not_even_be_called() -> None:
    with running(), pytest.raises(StubReached, match=r"^engine\.fused$"):
        Stub("engine.fused")(torch.ones(1))


def test_a_torch_operation_on_one_is_refused() -> None:
    with pytest.raises(StubReached, match="weight"):
        torch.add(torch.ones(1), Stub("engine.weight"))  # type: ignore[call-overload]


def test_an_import_inside_a_forward_is_still_an_import() -> None:
    with running(), setting_up():
        assert not Stub("engine.flag")


def test_an_annotation_that_a_constructor_makes_does_not_consult_its_placeholder() -> None:
    one, other = Stub("engine.Config"), Stub("engine.Config")
    with building():
        assert Optional[one] is not Optional[other]  # noqa: UP045  (target code writes it so)
        with pytest.raises(StubReached, match=r"engine\.Config"):
            one in (int, str)  # noqa: B015
