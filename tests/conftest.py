"""Settings for all tests."""

from __future__ import annotations

import gc

# what the command line does: a run builds syntax trees and drops them at the end
gc.freeze()
