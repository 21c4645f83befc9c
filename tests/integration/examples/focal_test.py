"""examples/focal: the focal loss finds more of the rare class."""

import functools

import numpy as np
import pytest

from examples import digits
from examples import focal
from tests.support import example_runs
import tftrain


def rare_accuracy(**options):
  make_task = functools.partial(focal.make_task, **options)
  run = example_runs.trainer_of(make_task, focal.train_data())
  run.train(500)
  return example_runs.report_on(run.task, focal.rare_data()).scalars['accuracy']


@pytest.mark.slow
def test_focal_finds_more_of_the_rare():
  assert rare_accuracy() > 0.72 > 0.65 > rare_accuracy(gamma=0.0, balance=0.0)


def test_focal_loss_is_what_the_paper_says():
  images, labels = digits.load('test')
  task = focal.make_task(gamma=2.0)
  loss = task.loss((images, labels), training=True)
  p = task.serve(images).numpy()[np.arange(len(labels)), labels]
  np.testing.assert_allclose(loss.values, -((1 - p) ** 2) * np.log(p), 1e-4)
  counts = np.bincount(focal.load(0.1)[1])
  np.testing.assert_allclose(
    loss.weights * counts[labels], counts.mean(), rtol=1e-5
  )


def test_focal_serves_probabilities_and_shows_what_is_confused():
  strategy = tftrain.make_strategy('mirrored')
  run = example_runs.trainer_of(focal.make_task, focal.train_data(), strategy)
  run.train(3)
  images, _ = digits.load('test')
  sums = run.task.serve(images).numpy().sum(-1)
  np.testing.assert_allclose(sums, 1.0, rtol=1e-5)
  shown = example_runs.report_on(
    run.task, digits.test_data(359), strategy
  ).artifacts
  rows = shown['confusion'].numpy().sum(2)[0, :, 0]
  np.testing.assert_allclose(rows, 1.0, rtol=1e-5)
  assert shown['recall'].count('\n') == 11
