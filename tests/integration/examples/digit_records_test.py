"""examples/digit_records: the digits as records are learned."""

import keras
import numpy as np
import pytest

from examples import digit_records
from tests.support import example_runs
import tftrain


@pytest.mark.slow
def test_digit_records_learn(tmp_path):
  data = digit_records.data(directory=str(tmp_path))
  assert data.num_examples == 1438
  written = example_runs.files_of(tmp_path)
  assert len([path for path in written if path.suffix == '.tfrecord']) == 4
  task = digit_records.make_task(lambda: keras.optimizers.Adam(0.002))
  example_runs.last_scalars(task, data, 600)
  test = digit_records.data(training=False, directory=str(tmp_path))
  assert tftrain.Evaluator(task, test).evaluate()['accuracy'] > 0.95
  digit_records.data(directory=str(tmp_path))
  assert written.items() <= example_runs.files_of(tmp_path).items()
  shown = task.artifacts(next(iter(test.dataset(0))))
  assert shown['least_sure'].shape == (8, 64, 64, 1)
  probabilities = [
    float(line.split('|')[3]) for line in shown['answers'].split('\n')[2:]
  ]
  assert len(probabilities) == 8
  assert probabilities == sorted(probabilities)


def test_digit_records_are_the_digits(tmp_path):
  data = digit_records.data(training=False, directory=str(tmp_path))
  found = list(data.dataset(0))
  images = np.concatenate([images for images, _ in found]).reshape(-1, 64)
  labels = np.concatenate([labels for _, labels in found])
  wanted, _ = digit_records.digits.load('test')
  assert sorted(map(bytes, images)) == sorted(map(bytes, wanted))
  assert len(labels) == len(wanted)
