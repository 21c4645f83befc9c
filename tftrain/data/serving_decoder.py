"""Decoder: decodes serialized records in an exported model."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import tensorflow as tf

from tftrain.data.sources import feature_spec
from tftrain.data.sources import shuffle as shuffle_lib
from tftrain.data.sources import tfrecord
from tftrain.data.sources import transforms
from tftrain.interop import autograph


@dataclasses.dataclass(frozen=True)
class Decoder:
  """The processing from serialized records to a batch, without the files.

  Attributes:
    features: Name -> Feature of a record.
    records: Some real records, for a trial.
    map: Maps an example to an example, as in an evaluation.
    mapped_spec: Spec of a batch of mapped examples.
    finish: Maps mapped examples, `[n, ...]`, to the batch that the Task gets.
  """

  features: Mapping[str, feature_spec.Feature]
  records: tuple[bytes, ...]
  map: Callable[[Any], Any]
  mapped_spec: Any
  finish: Callable[[Any], Any]

  @property
  def spec(self) -> dict[str, tf.TensorSpec]:
    """The spec of one example."""
    return {
      name: tf.TensorSpec(feature.shape, feature.dtype)
      for name, feature in self.features.items()
    }

  def decode(
    self, serialized: tf.Tensor, needed: Sequence[int], wanted: Sequence[int]
  ) -> Any:
    """Returns a batch made of serialized records.

    Args:
      serialized: Records, strings `[n]`.
      needed: Indices of the features to parse; the others are zero.
      wanted: Indices of the leaves of mapped examples to return; the others are
        zero.
    """
    # Indices count features and leaves in the order of tf.nest.
    names = sorted(self.features)
    read = {names[index]: self.features[names[index]] for index in needed}
    found = tfrecord.decoded(serialized, read)
    rows = tf.shape(serialized)[0]
    leaves = tf.nest.flatten(self.mapped_spec)

    def mapped(given: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
      example = {n: tf.zeros(s.shape, s.dtype) for n, s in self.spec.items()}
      outcome = tf.nest.flatten(self.map({**example, **given}))
      return [outcome[index] for index in wanted]

    specs_of_one = [
      tf.TensorSpec(leaves[index].shape[1:], leaves[index].dtype)
      for index in wanted
    ]
    values = tf.map_fn(mapped, found, fn_output_signature=specs_of_one)
    known = dict(zip(wanted, values, strict=True))
    batch = [
      known[index]
      if index in known
      else tf.zeros([rows, *leaf.shape[1:]], leaf.dtype)
      for index, leaf in enumerate(leaves)
    ]
    return self.finish(tf.nest.pack_sequence_as(self.mapped_spec, batch))


def make(
  source: Any,
  function: Callable[..., Any] | None,
  spec: Any,
  finish: Callable[[Any], Any],
) -> Decoder | None:
  """Makes a Decoder; None if the source does not hold tf.train.Examples.

  Args:
    source: Source that the pipeline reads.
    function: Map of the pipeline; None leaves examples unchanged.
    spec: Spec of one mapped example.
    finish: Maps mapped examples, `[n, ...]`, to the batch that the Task gets.
  """
  if not isinstance(source, tfrecord.TFRecords):
    return None

  def mapped(example: Any) -> Any:
    if function is None:
      return example
    convert = autograph.converted(function)
    if transforms.takes_seed(function):  # serving is deterministic
      return convert(example, shuffle_lib.seed_of(0, tf.constant(0, tf.int64)))
    return convert(example)

  batched = tf.nest.map_structure(
    lambda leaf: tf.TensorSpec([None, *leaf.shape], leaf.dtype), spec
  )
  return Decoder(source.features, source.first(3), mapped, batched, finish)
