"""Evaluation and prediction: metrics of a dataset, outputs of examples."""
