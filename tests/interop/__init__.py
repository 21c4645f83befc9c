"""Tests of the adapters to TensorFlow and Keras."""
