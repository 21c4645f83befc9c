"""Paths of the repository."""

import pathlib

ROOT = pathlib.Path(__file__).parent.parent.parent
