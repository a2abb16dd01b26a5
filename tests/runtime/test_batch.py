"""The batch that models see: the tree's own class computes what follows from its values."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from reference_runtime.reference.batch import Batch


class ForwardBatch:
    rows: int

    @property
    def doubled(self) -> int:
        return 2 * self.rows

    def padded(self, step: int) -> int:
        return -(-self.rows // step) * step


def test_properties_and_methods_of_the_trees_class_work_on_the_values_here() -> None:
    batch = Batch({"rows": 5}, ForwardBatch)
    assert (batch.doubled, batch.padded(4)) == (10, 8)


def test_what_the_class_does_not_have_does_not_exist() -> None:
    assert not hasattr(Batch({"rows": 5}, ForwardBatch), "tripled")
    assert not hasattr(Batch({"rows": 5}), "doubled")
