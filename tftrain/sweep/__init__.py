"""Sweeps: many trials of one configuration, on one machine or many.

The controller imports no TensorFlow. Each trial is a process of its own,
`<command> --sweep_dir=D --trial_index=N`, whoever starts it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
