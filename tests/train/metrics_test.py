"""Metrics: results of any shape, and loss parts that are added up."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.train import metrics


class Confusion(keras.Metric):
  """Counts `[labels, predictions]` of class labels and logits."""

  def __init__(self, classes=3):
    super().__init__(name='confusion')
    self._classes = classes
    self.counts = self.add_variable((classes, classes), 'zeros')

  def update_state(self, labels, logits, sample_weight=None):
    guesses = tf.argmax(logits, -1)
    found = tf.math.confusion_matrix(labels, guesses, self._classes)
    self.counts.assign_add(tf.cast(found, tf.float32))

  def result(self):
    return self.counts


class Rates(Confusion):
  """Recall by name, as a dictionary."""

  def result(self):
    recall = tf.linalg.diag_part(self.counts) / tf.reduce_sum(self.counts, -1)
    return {'first': recall[0], 'all': recall, 'worst': tf.reduce_min(recall)}


class OneHot(keras.metrics.F1Score):
  """F1Score of class labels: its result is a vector by default."""

  def update_state(self, labels, logits, sample_weight=None):
    super().update_state(tf.one_hot(labels, 3), logits, sample_weight)


def task():
  return small_tasks.supervised(
    keras.optimizers.SGD(0.0),
    {'confusion': Confusion(), 'rates': Rates(), 'f1': OneHot()},
  )


def expected(model, x, y):
  guesses = np.argmax(model.predict(x, verbose=0), -1)
  counts = np.zeros((3, 3))
  for label, guess in zip(y, guesses, strict=True):
    counts[label, guess] += 1
  recall = np.diag(counts) / counts.sum(1)
  precision = np.diag(counts) / np.maximum(counts.sum(0), 1e-9)
  both = recall + precision
  f1 = np.where(both > 0, 2 * recall * precision / np.maximum(both, 1e-9), 0.0)
  found = {f'confusion/{i}/{j}': counts[i, j] for i in range(3)
           for j in range(3)}  # fmt: skip
  found |= {f'rates/all/{i}': value for i, value in enumerate(recall)}
  found |= {'rates/first': recall[0], 'rates/worst': recall.min()}
  return found | {f'f1/{i}': value for i, value in enumerate(f1)}


@pytest.mark.slow
@pytest.mark.parametrize('strategy', ['one_device', 'mirrored'])
def test_results_of_any_shape_are_reported_by_entry(strategy):
  x, y = small_tasks.arrays(48)
  strategy = tftrain.make_strategy(strategy)
  with strategy.scope():
    made = task()
  trainer = tftrain.Trainer(
    made, tftrain.Arrays((x, y), 8, training=False), strategy=strategy
  )
  evaluator = tftrain.Evaluator(made, [(x, y)], strategy=strategy)
  wanted = expected(made.model, x, y)
  for scalars, tags in (
    (trainer.train(6).scalars, trainer.tags),
    (evaluator.evaluate(), evaluator.tags),
  ):
    found = {name: scalars[name] for name in wanted}
    assert set(wanted) <= set(tags)
    for name, value in wanted.items():
      np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


def test_an_entry_can_be_monitored(tmp_path):
  x, y = small_tasks.arrays(48)
  experiment = tftrain.Experiment(
    task,
    lambda: tftrain.Arrays((x, y), 8),
    {'test': lambda: tftrain.Arrays((x, y), 16, training=False)},
    steps=4,
    eval_every=2,
    export=False,
    best=tftrain.checkpoint.KeepBest('eval/test/f1/1', 'max'),
    early_stop=tftrain.EarlyStopping('eval/test/rates/worst', patience=9),
  )
  scalars = experiment.train(tmp_path / 'run').scalars
  assert 'eval/test/f1/1' in scalars and 'eval/test/confusion/2/2' in scalars


def test_a_result_of_unknown_length_is_refused_by_name():
  read = tf.function(
    lambda value: [entry for _, entry in metrics._entries('odd', value)],
    input_signature=[tf.TensorSpec([None])],
    autograph=False,
  )
  with pytest.raises(errors.TaskError, match="'odd' has a result of shape"):
    read(tf.ones([2]))


def test_parts_of_a_loss_are_divided_each_by_its_weights():
  means = metrics.Means(['loss#0', 'loss#1', 'accuracy'])
  assert means.names == ('loss', 'accuracy')
  means.add(
    {'loss#0': (6.0, 3.0), 'loss#1': (1.0, 4.0), 'accuracy': (1.0, 2.0)}
  )
  means.add(
    {'loss#0': (0.0, 1.0), 'loss#1': (0.0, 0.0), 'accuracy': (0.0, 0.0)}
  )
  assert means.read() == {'loss': 1.75, 'accuracy': 0.5}
  means.reset()
  assert means.read() == {}
