"""A subclass of Trainer: on one device, and on two workers in processes."""

import json

import keras
import numpy as np
import pytest

from tests.support import worker_processes
import tftrain

_STEPS = 12


class OwnTrainer(tftrain.Trainer):
  """Overrides methods, adds one, and counts their calls."""

  blocks = 0

  def train(self, steps, actions=()):
    return super().train(steps, actions)

  def _take_block(self, until):
    self.blocks += 1
    return super()._take_block(until)

  def read_state(self):
    return super().read_state()

  def norm(self):
    return float(sum((w**2).sum() for w in self.task.model.get_weights()))


def run(strategy):
  random = np.random.RandomState(0)
  x = random.normal(size=(64, 5)).astype('float32')
  keras.utils.set_random_seed(0)
  with strategy.scope():
    layers = [keras.Input((5,)), keras.layers.Dense(4, 'tanh')]
    task = tftrain.SupervisedTask(
      keras.Sequential([*layers, keras.layers.Dense(1)]),
      'mse',
      keras.optimizers.Adam(0.01),
    )
  data = tftrain.Arrays((x, x.sum(1, keepdims=True)), 16)
  trainer = OwnTrainer(task, data, strategy=strategy, log_every=4)
  losses, steps = [], []

  def note(report):  # all workers read the state, whoever asks for it
    losses.append(report.scalars['loss'])
    steps.append(int(trainer.read_state()['trainer/step']))

  trainer.train(_STEPS, [note])
  return {
    'losses': losses,
    'norm': trainer.norm(),
    'blocks': trainer.blocks,
    'steps': steps,
  }


def test_on_one_device():
  found = run(tftrain.make_strategy('one_device'))
  assert found['steps'] == [4, 8, 12] and len(found['losses']) == 3
  assert found['blocks'] == 4  # step 1 is looked at for dead units


@pytest.mark.slow
def test_on_two_workers_in_processes():
  chief, other = worker_processes.printed_by_two('tests.train.subclass_test')
  expected = run(tftrain.make_strategy('one_device'))
  assert chief['losses'] == pytest.approx(expected['losses'], rel=2e-6)
  assert chief['norm'] == pytest.approx(expected['norm'], rel=2e-6)
  assert other['norm'] == chief['norm']
  assert chief['blocks'] == other['blocks'] == 4
  assert chief['steps'] == [4, 8, 12]


def main():
  strategy = tftrain.make_strategy('multi_worker_mirrored')
  print(json.dumps(run(strategy)))


if __name__ == '__main__':
  main()
