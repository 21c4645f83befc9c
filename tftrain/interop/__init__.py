"""Interoperation: adapters to private parts of TensorFlow and Keras."""
