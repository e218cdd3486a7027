"""``python -m weightscope``."""

from weightscope.cli.main import main

main()
