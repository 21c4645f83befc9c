"""Tests of a run on a model_dir."""
