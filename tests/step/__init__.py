"""Tests of a training step."""
