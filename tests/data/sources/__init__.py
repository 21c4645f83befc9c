"""Tests of the sources of examples."""
