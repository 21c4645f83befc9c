"""The check of a sweep by its target: all trials at once."""

import json

import pytest

from tests.support import planned_sweeps


def _describe(commands, sweep_dir):
  ended = commands.run(
    '--mode=describe', '--format=json', f'--sweep_dir={sweep_dir}'
  )
  assert ended.code == 0, ended.stderr
  return json.loads(ended.stdout.splitlines()[-1])


def _at(plan, name):
  """Where base.gin binds a name."""
  lines = plan.base.read_text().splitlines()
  (number,) = (n for n, line in enumerate(lines, 1) if line.startswith(name))
  return f'{plan.base}:{number}'


def test_a_target_checks_all_trials_at_once(commands, tmp_path):
  plan = planned_sweeps.planned(
    tmp_path,
    f"""{planned_sweeps.DIGITS}
    Sweep.space = [
      {{'Adam.learning_rate': [0.01, 'high']}},
      {{'Adam.learning_rat': [0.1]}},
      {{'digits.make_task.optimizer': [@SGD], 'SGD.momentum': [0.9]}},
      {{'SGD.momentum': [0.9], 'STEPS': [30]}}]
    """,
  )
  found = _describe(commands, plan.sweep_dir)
  assert set(found['metrics']) >= {'train/loss', 'eval/test/accuracy'}
  assert [one.get('steps') for one in found['trials']] == [20] + [None] * 4
  assert [one['error'] for one in found['trials']] == [
    None,
    "--gin_bindings: Adam.learning_rate = 'high' is str, expected float",
    "--gin_bindings: Adam has no parameter 'learning_rat'; did you mean "
    "'learning_rate'?",
    f'{_at(plan, "Adam.learning_rate")}: Adam.learning_rate has no effect: '
    'nothing refers to @Adam; do so, or remove the binding',
    '--gin_bindings: SGD.momentum has no effect: nothing refers to @SGD; do '
    'so, or remove the binding',
  ]


@pytest.mark.slow
def test_a_metric_that_only_some_trials_write_is_told_before(
  commands, tmp_path
):
  plan = planned_sweeps.planned(
    tmp_path,
    f"""{planned_sweeps.DIGITS}
    small/digits.test_data.batch_size = 359
    Sweep.space = {{'Experiment.eval_data': [
      {{'test': @small/digits.test_data}},
      {{'other': @small/digits.test_data}}]}}
    """,
  )
  first, second = _describe(commands, plan.sweep_dir)['trials']
  assert first['error'] is None
  assert second['error'].startswith(
    'it never writes eval/test/accuracy, which other trials do; it writes train'
  )


def test_what_a_sampler_may_draw_is_checked_by_samples(commands, tmp_path):
  plan = planned_sweeps.planned(
    tmp_path,
    f"""{planned_sweeps.DIGITS}
    Sweep.space = {{'Adam.learning_rate': 'log_uniform(1e-4, 1e-2)',
                   'digits.make_task.filters': [8, 'many']}}
    Sweep.search = 'tpe'
    Sweep.num_trials = 50
    """,
  )
  found = _describe(commands, plan.sweep_dir)
  wrong = [one['error'] for one in found['trials'] if one['error']]
  assert wrong == [
    "--gin_bindings: digits.make_task.filters = 'many' is str, expected int"
  ]
