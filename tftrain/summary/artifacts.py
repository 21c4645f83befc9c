"""Artifacts: images, texts, audio, tables and plots, for TensorBoard.

Each kind of artifact is one class of this file. `fault` describes an error in
an artifact before the first step, and `write` writes the artifact.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import io
import struct
import sys
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.pr_curve import metadata as pr_metadata
import tensorflow as tf

from tftrain import errors

_BUCKETS = 30
_THRESHOLDS = 201


@runtime_checkable
class Artifact(Protocol):
  """The protocol of an artifact: an object with these two methods."""

  def fault(self) -> str | None:
    """Returns the error and its remedy, or None for a valid artifact."""

  def write(self, tag: str) -> None:
    """Writes the artifact with the default tf.summary writer, at its step."""


@dataclasses.dataclass(frozen=True)
class Audio:
  """Audio clips.

  Attributes:
    samples: `[clips, frames, channels]`, floats from -1 to 1.
    sample_rate: Frames per second.
  """

  samples: Any
  sample_rate: int

  def fault(self) -> str | None:
    shape, kind = _shape_of(self.samples), _dtype(self.samples)
    if shape is None or len(shape) != 3 or not kind.is_floating:
      return (
        f'samples of {_type_and_shape(self.samples)}; give floats '
        '[clips, frames, channels] of -1 to 1'
      )
    rate = self.sample_rate
    if not isinstance(rate, int | np.integer) or rate < 1:
      return f'sample_rate {rate!r}; give frames per second, such as 16000'
    return None

  def write(self, tag: str) -> None:
    samples = tf.cast(self.samples, tf.float32)
    rate = int(self.sample_rate)
    tf.summary.audio(tag, samples, rate, max_outputs=len(samples))


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of values, shown as a Markdown table.

  Attributes:
    columns: Names of the columns.
    rows: Rows with a value for each column. Floats are shown with four
      significant digits.
  """

  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]

  def fault(self) -> str | None:
    if isinstance(self.columns, str) or not len(self.columns):
      return f'columns {self.columns!r}; give a list of names'
    for index, row in enumerate(self.rows):
      if isinstance(row, str) or not hasattr(row, '__len__'):
        return f'a row {index} of type {type(row).__name__}; give a list'
      if len(row) != len(self.columns):
        return (
          f'a row {index} of {len(row)} values for {len(self.columns)} '
          'columns; give a value for each'
        )
    return None

  def markdown(self) -> str:
    rule = ['---'] * len(self.columns)
    lines = [self.columns, rule, *self.rows]
    return ''.join(
      f'| {" | ".join(map(_table_cell, line))} |\n' for line in lines
    )

  def write(self, tag: str) -> None:
    tf.summary.text(tag, self.markdown())


@dataclasses.dataclass(frozen=True)
class Histogram:
  """The distribution of values; values that are not finite are left out.

  Attributes:
    values: Numbers, of any shape.
  """

  values: Any

  def fault(self) -> str | None:
    if _as_float64(self.values) is None:
      return f'values of {_type_and_shape(self.values)}; give numbers'
    return None

  def write(self, tag: str) -> None:
    write_histogram(tag, self.values)


@dataclasses.dataclass(frozen=True)
class PrCurve:
  """The precision-recall curve of a binary classifier, at 201 thresholds.

  Attributes:
    labels: True or False (1 or 0) for each example.
    scores: Probability of each example, from 0 to 1, in the shape of `labels`.
      Examples with a NaN score are left out.
  """

  labels: Any
  scores: Any

  def fault(self) -> str | None:
    labels, scores = _as_float64(self.labels), _as_float64(self.scores)
    if labels is None or scores is None or labels.shape != scores.shape:
      return (
        f'labels of {_type_and_shape(self.labels)} and scores of '
        f'{_type_and_shape(self.scores)}; give a label and a score for each '
        'example'
      )
    if not np.isin(labels, (0, 1)).all():
      return f'the label {labels[~np.isin(labels, (0, 1))][0]:g}; give 0 or 1'
    wrong = scores[(scores < 0) | (scores > 1)]
    if wrong.size:
      return (
        f'the score {wrong[0]:g}; give probabilities of 0 to 1 (a sigmoid of '
        'the logits)'
      )
    return None

  def write(self, tag: str) -> None:
    tf.summary.write(
      tag,
      _pr_curve(_as_float64(self.labels), _as_float64(self.scores)),
      metadata=pr_metadata.create_summary_metadata(
        display_name=None, description='', num_thresholds=_THRESHOLDS
      ),
    )


@dataclasses.dataclass(frozen=True)
class Drawing:
  """The bytes of a PNG image, to which a matplotlib Figure is rendered."""

  png: bytes

  def fault(self) -> str | None:
    return None

  def write(self, tag: str) -> None:
    width, height = struct.unpack('>II', self.png[16:24])
    tf.summary.write(
      tag,
      tf.constant([str(width).encode(), str(height).encode(), self.png]),
      metadata=image_metadata.create_summary_metadata(
        display_name=None, description=None
      ),
    )


@dataclasses.dataclass(frozen=True)
class _Text:
  """A string, shown as Markdown."""

  text: str

  def fault(self) -> str | None:
    return None

  def write(self, tag: str) -> None:
    tf.summary.text(tag, self.text)


@dataclasses.dataclass(frozen=True)
class _Images:
  """Images `[images, height, width, channels]`, or an unknown value."""

  images: Any

  def fault(self) -> str | None:
    shape, kind = _shape_of(self.images), _dtype(self.images)
    wanted = (
      'give images [images, height, width, channels], a str, or one of '
      'tftrain.summary.Audio, Table, Histogram, PrCurve'
    )
    if shape is None or len(shape) != 4:
      return f'{_type_and_shape(self.images)}; {wanted}'
    if not 1 <= shape[-1] <= 4:
      return f'shape {tuple(shape)}; give 1 to 4 channels'
    if not kind.is_floating and kind != tf.uint8:
      return f'{kind.name} images; give uint8, or floats of 0 to 1'
    return None

  def write(self, tag: str) -> None:
    tf.summary.image(tag, self.images, max_outputs=len(self.images))


def prepared(owner: str, artifacts: Any) -> Mapping[str, Any]:
  """Checks the result of `artifacts()`; renders and closes Figures.

  Args:
    owner: Name of the Task, for errors.
    artifacts: Name -> artifact.

  Raises:
    TaskError: If `artifacts` is not a mapping of valid artifacts.
  """
  returned = f'artifacts() of {owner} returned'
  if not isinstance(artifacts, Mapping):
    what = 'None' if artifacts is None else f'a {type(artifacts).__name__}'
    raise errors.TaskError(
      f'{returned} {what}; return {{name: images or str}}, or {{}} for nothing'
    )
  for name, value in artifacts.items():
    if not isinstance(name, str):
      raise errors.TaskError(f'{returned} the name {name!r}; give a str')
    if fault := _known(value).fault():
      what = 'of' if isinstance(_known(value), _Images) else 'with'
      raise errors.TaskError(f'{returned} {name!r} {what} {fault}')
  return {name: _drawn(value) for name, value in artifacts.items()}


def write(tag: str, value: Any) -> None:
  """Writes an artifact with TensorFlow's default summary writer."""
  _known(value).write(tag)


def write_histogram(tag: str, values: Any) -> None:
  """Writes what tf.summary.histogram writes, in a thirtieth of its memory."""
  numbers = np.asarray(values, np.float64).ravel()
  numbers = numbers[np.isfinite(numbers)]
  counts, edges = np.zeros(_BUCKETS), np.zeros(_BUCKETS + 1)
  if numbers.size and numbers.min() < numbers.max():
    counts, edges = np.histogram(numbers, _BUCKETS)
  elif numbers.size:  # as TensorBoard does: all in the last of equal buckets
    edges += numbers[0]
    counts[-1] = numbers.size
  tf.summary.write(
    tag,
    np.stack([edges[:-1], edges[1:], counts], axis=1),
    metadata=histogram_metadata.create_summary_metadata(
      display_name=None, description=None
    ),
  )


def confusion_matrix(
  labels: Any,
  predictions: Any,
  names: Sequence[str],
  *,
  image: bool = False,
) -> Any:
  """Counts the predictions of each class, by label.

  >>> def artifacts(self, batch):
  ...   x, y = batch
  ...   guessed = tf.argmax(self.model(x), -1)
  ...   matrix = tftrain.summary.confusion_matrix(y, guessed, NAMES)
  ...   return {'confusion': matrix}

  Args:
    labels: Class of each example, integers of any shape.
    predictions: Predicted class of each example, as many as `labels`.
    names: Names of the classes.
    image: Whether to draw the matrix: a row for each label, a column for each
      prediction, darker for a larger share of the label's examples.

  Returns:
    A Table of counts, or an image `[1, height, width, 3]`.

  Raises:
    TaskError: If `labels` and `predictions` differ in number, or a class in
      them is not an index of `names`.
  """
  true, guessed = np.ravel(labels), np.ravel(predictions)
  if true.shape != guessed.shape:
    raise errors.TaskError(
      f'confusion_matrix has {true.size} labels and {guessed.size} '
      'predictions; give one of each for each example (an argmax of the logits)'
    )
  count = len(names)
  for index in np.concatenate([true, guessed]):
    if index != int(index) or not 0 <= index < count:
      raise errors.TaskError(
        f'confusion_matrix has the class {index:g} and {count} names; give '
        f'whole numbers of 0 to {count - 1}, and a name for each class'
      )
  matrix = np.zeros([count, count], np.int64)
  np.add.at(matrix, (true.astype(int), guessed.astype(int)), 1)
  if image:
    return _heat_map(matrix)
  rows = [[name, *row] for name, row in zip(names, matrix, strict=True)]
  return Table(['label', *names], rows)


_WHITE, _BLUE = np.array([255, 255, 255]), np.array([8, 48, 107])


def _heat_map(matrix: np.ndarray, cell: int = 16) -> np.ndarray:
  """Returns `[1, h, w, 3]`: white to blue squares, by share of their row."""
  share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  colours = _WHITE + share[..., None] * (_BLUE - _WHITE)
  squares = np.kron(colours, np.ones([cell, cell, 1]))
  return np.rint(squares).astype(np.uint8)[None]


def _known(value: Any) -> Artifact:
  """Returns a value as an artifact."""
  if isinstance(value, Artifact):
    return value
  if isinstance(value, str):
    return _Text(value)
  if _is_figure(value):
    return Drawing(b'')  # until it is drawn
  return _Images(value)


def _is_figure(value: Any) -> bool:
  """Returns whether value is a matplotlib Figure, without importing it."""
  module = sys.modules.get('matplotlib.figure')
  return module is not None and isinstance(value, module.Figure)


def _drawn(value: Any) -> Any:
  if not _is_figure(value):
    return value
  into = io.BytesIO()
  value.savefig(into, format='png')  # by Agg, independent of the backend
  if pyplot := sys.modules.get('matplotlib.pyplot'):
    pyplot.close(value)  # else pyplot keeps it for ever
  return Drawing(into.getvalue())


def _pr_curve(labels: Any, scores: Any) -> np.ndarray:
  """Computes `[6, thresholds]`: TP, FP, TN, FN, precision and recall."""
  known = ~np.isnan(scores)
  labels, scores = labels[known].ravel(), scores[known].ravel()
  at = np.floor(scores * (_THRESHOLDS - 1)).astype(int)

  def at_least(weights: np.ndarray) -> np.ndarray:
    """Returns the sum of weights at or above each threshold."""
    return np.bincount(at, weights, _THRESHOLDS)[::-1].cumsum()[::-1]

  tp, fp = at_least(labels), at_least(1 - labels)
  tn, fn = fp[0] - fp, tp[0] - tp
  precision = tp / np.maximum(tp + fp, 1)
  recall = tp / np.maximum(tp + fn, 1)
  return np.stack([tp, fp, tn, fn, precision, recall]).astype(np.float32)


def _table_cell(value: Any) -> str:
  text = (
    f'{value:.4g}' if isinstance(value, float | np.floating) else f'{value}'
  )
  return ' '.join(text.replace('|', r'\|').split())


def _as_float64(values: Any) -> np.ndarray | None:
  try:
    return np.asarray(values).astype(np.float64)
  except (TypeError, ValueError):
    return None


def _shape_of(value: Any) -> Any:
  return getattr(value, 'shape', None)


def _dtype(value: Any) -> Any:
  return tf.as_dtype(getattr(value, 'dtype', tf.string))


def _type_and_shape(value: Any) -> str:
  shape = _shape_of(value)
  if shape is None:
    return f'type {type(value).__name__}'
  return f'shape {tuple(shape)}'
