"""What any tool in Python pays for a cold run: read and search all files of a tree, parse those with the words."""

from __future__ import annotations

import ast
import sys

from moe_lint.discover import python_file_names
from moe_lint.prefilter import Prefilter, read_bytes
from moe_lint.profile import load_profile

prefilter = Prefilter(load_profile("sglang"))
for path in python_file_names(sys.argv[1]):
    data = read_bytes(path)
    if prefilter.is_candidate(data):
        ast.parse(data)
