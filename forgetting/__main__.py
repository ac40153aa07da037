"""``python -m forgetting``."""

from forgetting.cli import main

main()
