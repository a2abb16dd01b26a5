"""Who builds whom and who calls whom: decoder layers, the blocks that they run, the arguments as the callee binds them.

A `Layer` is a class that builds an absorber (a communicator or a stage boundary). Its calls are followed into the
blocks, and on to the reductions there, with what every flag is worth on the way: `Callers.edges` are the calls of one
function, `Callers.paths` all calls below a layer, `Callers.sums` the reductions that a call reaches and when they run.
"""

from moe_lint.callers.callers import Callers
from moe_lint.callers.data import Bound, Built, Edge, Frame, Instance, Layer, Sum

__all__ = ["Bound", "Built", "Callers", "Edge", "Frame", "Instance", "Layer", "Sum"]
