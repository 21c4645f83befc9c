"""Action: the base class, and what is wrapped or refused."""

import pytest

from tests.support import small_tasks
import tftrain


def trainer(**options):
  data = tftrain.Arrays(small_tasks.arrays(), batch_size=8)
  return small_tasks.trainer(data, **options)


class Noted(tftrain.Action):
  """Notes the steps of its Reports."""

  def __init__(self):
    self.steps = []

  def __call__(self, report):
    self.steps.append(report.step)


class NotedAlways(Noted):
  needs_scalars = False

  def next_due(self, step):
    return 7 if step < 7 else None


def test_a_function_and_an_action_get_the_reports_with_scalars():
  steps, noted = [], Noted()
  trainer(log_every=5).train(12, [lambda r: steps.append(r.step), noted])
  assert steps == noted.steps == [5, 10, 12]


def test_an_action_that_needs_no_scalars_gets_the_report_of_each_block():
  noted = NotedAlways()
  trainer(log_every=5).train(12, [noted])
  # Blocks end at reports, and at step 1, which is looked at for dead units.
  assert noted.steps == [1, 5, 7, 10, 12]


def test_actions_are_called_by_their_place():
  called = []

  class Placed(tftrain.Action):
    def __init__(self, place):
      self.place = place

    def __call__(self, report):
      called.append(self.place)

  trainer(log_every=5).train(5, [Placed(2), Placed(-1), Placed(0)])
  assert called == [-1, 0, 2]


def test_a_method_of_an_action_has_its_part_of_the_ledger():
  class Slow(tftrain.Action):
    part = 'checkpoint'

    def tell(self, report):
      del report

  made = tftrain.report.as_action(Slow().tell)
  assert made.part == 'checkpoint'
  assert tftrain.report.as_action(print).part == 'actions'
  assert tftrain.Every(3, Slow().tell).part == 'checkpoint'


class Duck:
  def next_due(self, step):
    return step + 1

  def __call__(self, report):
    pass


@pytest.mark.parametrize(
  ('actions', 'text'),
  [
    ([Duck()], r'Duck has next_due\(\) but is no Action'),
    ([Noted], 'Noted is no Action; give an instance'),
    ([3], '3 is no Action'),
    (Noted(), r'actions is Noted, not a list; write \[action\]'),
    (print, 'not a list'),
  ],
)
def test_what_is_no_action_is_refused(actions, text):
  with pytest.raises(tftrain.errors.ConfigError, match=text):
    trainer().train(3, actions)


def test_what_is_no_action_is_refused_within_every():
  with pytest.raises(tftrain.errors.ConfigError, match='Duck has next_due'):
    tftrain.Every(3, Duck())


def test_the_state_of_actions_is_saved_those_without_state_are_not(tmp_path):
  class Counting(Noted):
    def read_state(self):
      return {'steps': self.steps}

    def write_state(self, state):
      self.steps = list(state['steps'])

  def run(steps):
    counting = Counting()
    made = trainer(log_every=5)
    actions = [tftrain.Every(5, counting), Noted()]
    checkpointer = tftrain.Checkpointer(tmp_path, made, actions=actions)
    checkpointer.restore()
    made.train(steps, [*actions, tftrain.Every(5, checkpointer)])
    return counting.steps

  assert run(10) == [5, 10]
  assert run(20) == [5, 10, 15, 20]
