"""Experiments: a whole run on one model_dir, from config to result."""
