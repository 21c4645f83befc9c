"""tftrain: training loops for TensorFlow 2 and Keras 3.

A Trainer takes steps and reports; an Action receives the Report; everything
else is an Action.

The public names stand in `__init__.pyi`. Each is imported when it is first
used, so importing tftrain does not import TensorFlow.
"""

import lazy_loader

__version__ = '0.1.0'

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
