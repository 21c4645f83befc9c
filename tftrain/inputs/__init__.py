"""Where batches come from.

A Source holds single examples; an Examples makes batches of them. Arrays and
Batches are Pipelines of their own.
"""

from tftrain.inputs.arrays import Arrays
from tftrain.inputs.batchers import Bucketed
from tftrain.inputs.batchers import Packed
from tftrain.inputs.batchers import Padded
from tftrain.inputs.batchers import Ragged
from tftrain.inputs.batches import as_pipeline
from tftrain.inputs.batches import Batches
from tftrain.inputs.decoders import Decoder
from tftrain.inputs.examples import Examples
from tftrain.inputs.folders import ImageFolder
from tftrain.inputs.folders import TextFiles
from tftrain.inputs.generators import Generator
from tftrain.inputs.iterators import load as load_iterator
from tftrain.inputs.iterators import save as save_iterator
from tftrain.inputs.libraries import ArrayRecord
from tftrain.inputs.libraries import Parquet
from tftrain.inputs.libraries import Tfds
from tftrain.inputs.limits import all_limited
from tftrain.inputs.limits import FirstBatches
from tftrain.inputs.limits import limited
from tftrain.inputs.lines import Csv
from tftrain.inputs.lines import JsonLines
from tftrain.inputs.lines import TextLines
from tftrain.inputs.memory import InMemory
from tftrain.inputs.memory import Npz
from tftrain.inputs.memory import RandomAccess
from tftrain.inputs.mixtures import Mapped
from tftrain.inputs.mixtures import Mixture
from tftrain.inputs.opening import open_input
from tftrain.inputs.opening import stamps
from tftrain.inputs.pipelines import described
from tftrain.inputs.pipelines import explained
from tftrain.inputs.pipelines import Pipeline
from tftrain.inputs.records import TFRecords
from tftrain.inputs.sources import Source
from tftrain.inputs.writing import write_records

__all__ = [
  'ArrayRecord',
  'Arrays',
  'Batches',
  'Bucketed',
  'Csv',
  'Decoder',
  'Examples',
  'FirstBatches',
  'Generator',
  'ImageFolder',
  'InMemory',
  'JsonLines',
  'Mapped',
  'Mixture',
  'Npz',
  'Packed',
  'Padded',
  'Parquet',
  'Pipeline',
  'Ragged',
  'RandomAccess',
  'Source',
  'TFRecords',
  'TextFiles',
  'TextLines',
  'Tfds',
  'all_limited',
  'as_pipeline',
  'described',
  'explained',
  'limited',
  'load_iterator',
  'open_input',
  'stamps',
  'save_iterator',
  'write_records',
]
