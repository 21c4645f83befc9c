"""Data pipelines: make batches from sources of examples.

A `Source` holds single examples, and `Examples` makes batches of them. `Arrays`
and `DatasetPipeline` are Pipelines without a Source.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
