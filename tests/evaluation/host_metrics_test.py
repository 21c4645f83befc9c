"""Host metrics: computed on all examples, for any batches and replicas."""

import keras
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain import errors


def probabilities(logits):
  return tf.nn.softmax(logits).numpy()


def auc(labels, logits):
  return sklearn_metrics.roc_auc_score(
    labels, probabilities(logits), multi_class='ovr'
  )


def f1(labels, logits):
  return sklearn_metrics.f1_score(labels, logits.argmax(-1), average='macro')


def make_task(host_metrics=None):
  keras.utils.set_random_seed(0)
  return tftrain.SupervisedTask(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.SGD(0.1),
    {'accuracy': keras.metrics.sparse_categorical_accuracy},
    host_metrics={'auc': auc, 'f1': f1} if host_metrics is None
    else host_metrics,
  )  # fmt: skip


def columns(remainder):
  x, y = small_tasks.arrays(67)
  return tftrain.data.Examples(
    tftrain.data.InMemory((x, y)), 8, training=False, remainder=remainder
  )


@pytest.mark.parametrize('replicas', [1, 2])
@pytest.mark.parametrize('remainder', ['keep', 'pad'])
def test_they_are_those_of_the_whole_data(remainder, replicas):
  names = ['CPU:0', 'CPU:1'][:replicas]
  strategy = tf.distribute.MirroredStrategy(names)
  with strategy.scope():
    task = make_task()
  evaluator = tftrain.Evaluator(task, columns(remainder), strategy=strategy)
  assert evaluator.tags == ('loss', 'accuracy', 'auc', 'f1')
  scalars = evaluator.evaluate()
  x, y = small_tasks.arrays(67)
  logits = task.model(x).numpy()
  assert scalars['auc'] == pytest.approx(auc(y, logits), 1e-6)
  assert scalars['f1'] == pytest.approx(f1(y, logits), 1e-6)


def test_a_run_reports_them_and_may_wait_for_them(tmp_path):
  result = tftrain.Experiment(
    make_task,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(20), 8, training=False),
    steps=10,
    eval_every=5,
    best=tftrain.checkpoint.KeepBest('eval/test/auc', goal='max'),
    export=False,
  ).train(tmp_path)
  assert 0.5 < result.scalars['eval/test/auc'] <= 1.0
  assert 'auc' in (tmp_path / 'metrics.jsonl').read_text()


def test_averages_take_the_place_of_weights():
  def first(labels, logits):
    return float(logits[0, 0])

  task = make_task({'first': first})
  data = tftrain.Arrays(small_tasks.arrays(), 8)
  trainer = tftrain.Trainer(task, data, update=tftrain.Update(ema=0.9))
  evaluator = tftrain.Evaluator(
    task, tftrain.Arrays(small_tasks.arrays(20), 8, training=False)
  )
  trainer.train(20)
  x, _ = small_tasks.arrays(20)
  with task.averaged():
    averaged = float(task.model(x)[0, 0])
  assert averaged != float(task.model(x)[0, 0])
  assert evaluator.evaluate()['first'] == pytest.approx(averaged, 1e-6)


class Bigrams(tftrain.Task):
  """Collects what it likes, by names of its own."""

  def loss(self, batch, training):
    x, y = batch
    logits = self.model(x, training=training)
    return tftrain.Loss(
      tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    )

  def collect(self, batch):
    x, y = batch
    return {'right': tf.equal(tf.argmax(self.model(x), -1), y)}

  def host_metrics(self):
    return {'longest': lambda collected: float(collected['right'].sum())}


def test_a_task_collects_what_it_likes():
  task = Bigrams(small_tasks.model(), keras.optimizers.SGD(0.1))
  x, y = small_tasks.arrays(20)
  data = tftrain.Arrays((x, y), 8, training=False)
  right = (task.model(x).numpy().argmax(-1) == y).sum()
  assert tftrain.Evaluator(task, data).evaluate()['longest'] == right


@pytest.mark.parametrize(
  'function, text',
  [
    (lambda y, p: p, "host metric 'm' of SupervisedTask returned"),
    (lambda y, p: 'high', 'returned .high.; return one number'),
    (lambda y, p: 1 / 0, r'cannot take labels \[20\], predictions \[20, 3\]'),
    (np.linalg.norm, 'cannot take labels'),
  ],
)
def test_what_is_no_number_is_refused_by_name(function, text):
  data = tftrain.Arrays(small_tasks.arrays(20), 8, training=False)
  evaluator = tftrain.Evaluator(make_task({'m': function}), data)
  with pytest.raises(errors.TaskError, match=text):
    evaluator.evaluate()


def test_names_and_functions_are_looked_at_before_the_first_step():
  data = tftrain.Arrays(small_tasks.arrays(20), 8, training=False)
  with pytest.raises(errors.TaskError, match="'m' is a float"):
    tftrain.Evaluator(make_task({'m': 1.0}), data)
  with pytest.raises(errors.TaskError, match="reported as 'loss'"):
    tftrain.Evaluator(make_task({'loss': auc}), data)


def test_nan_is_a_number():
  data = tftrain.Arrays(small_tasks.arrays(20), 8, training=False)
  task = make_task({'m': lambda y, p: np.nan})
  assert np.isnan(tftrain.Evaluator(task, data).evaluate()['m'])
