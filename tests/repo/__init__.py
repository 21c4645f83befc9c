"""Tests of the repository: structure, types, builds."""
