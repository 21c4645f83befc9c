"""Where batches come from.

A Source holds single examples; an Examples makes batches of them. Arrays and
Batches are Pipelines of their own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
