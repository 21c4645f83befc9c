"""Sweeps: many trials of one configuration, on one machine or many.

The scheduler imports no TensorFlow. Each trial is a separate process,
`<command> --sweep_dir=D --trial_index=N`, under any scheduler.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
