"""tftrain: training loops for TensorFlow 2 and Keras 3.

A Trainer takes steps and emits Reports. An Action, which other libraries call
a callback, receives each Report. All else in a run is an Action: evaluation,
checkpoints, summaries, export.

`__init__.pyi` lists the public names. Each is imported on first use, so
importing tftrain does not import TensorFlow.
"""

import lazy_loader

__version__ = '0.1.0'

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
