"""Tests of Evaluator and Predictor."""
