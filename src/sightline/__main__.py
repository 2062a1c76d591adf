"""`python -m sightline`, for where the command is not on the path."""

from sightline.cli import main

main()
