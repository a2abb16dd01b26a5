"""`torchrun … -m reference_runtime BEFORE AFTER …`: `moe-lint verify` with a process of torchrun's for each rank."""

import os
import sys

from moe_lint.cli import main
from reference_runtime.plan import Member

main(["verify", *sys.argv[1:]], prog_name="moe-lint", obj=Member.of(os.environ))
