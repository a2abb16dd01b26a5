from moe_lint.cli import main

main()
