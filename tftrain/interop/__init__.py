"""Adapters to internals of TensorFlow and Keras."""
