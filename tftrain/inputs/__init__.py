"""Where batches come from; each kind of source is a Pipeline."""

from tftrain.inputs.arrays import Arrays
from tftrain.inputs.batches import as_pipeline
from tftrain.inputs.batches import Batches
from tftrain.inputs.pipelines import Pipeline

__all__ = ['Arrays', 'Batches', 'Pipeline', 'as_pipeline']
