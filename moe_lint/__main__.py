from moe_lint.cli import program

program()
