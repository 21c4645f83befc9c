"""Steps: numbers that are not finite, memory that is out, wrong metrics."""

import math

import pytest

pytestmark = pytest.mark.slow


def happening(what, at=43):
  return [
    f'mishaps.make_task.what = {what!r}',
    f'mishaps.make_task.at = {at}',
  ]


@pytest.mark.parametrize(
  'what,said', [('nan_loss', 'loss nan'), ('nan_gradient', 'gradient norm inf')]
)
def test_what_is_not_finite_ends_the_run_at_its_step(what, said, run, quiet):
  ended = run.live(*happening(what))
  assert ended.code == 1
  assert ended.error.startswith('step 43: ') and said in ended.error
  assert run.steps() == [20, 30, 40]
  assert run.manifest(40)['finite']
  # It happens in the 43rd step of a process; the next one does not come to it.
  run.finish(*happening(what))
  assert run.end() == quiet


@pytest.mark.parametrize('what', ['nan_loss', 'nan_gradient'])
def test_a_step_may_be_left_out(what, run):
  run.finish(*happening(what), 'Update.max_skips = 1')
  assert run.lines()[-2]['skipped_steps'] == 1
  assert math.isfinite(run.lines()[-2]['loss'])


def test_a_run_that_goes_back_ends_alike_however_often_it_is_killed(
  run, tmp_path
):
  """The bad batch is in the data, so every life comes to it."""
  bindings = [
    'mishaps.train_data.bad_row = 41',
    'Experiment.rewind = @Rewind()',
  ]
  bindings += ['Rewind.skip_batches = 3', 'Rewind.max_rewinds = 20']
  other = run.another(tmp_path / 'other')
  ended = other.finish(*bindings)
  assert 'Going back to step' in ended.stderr
  for step in (15, 35, 60):
    run.killed_at(step, *bindings)
  run.finish(*bindings)
  assert run.end() == other.end()
  assert run.manifest()['facts'] == other.manifest()['facts']
  run_json = run.json('run.json')
  assert run_json['passed_over'] == run.manifest()['facts']['passed_over']


def test_the_last_finite_checkpoint_outlives_those_that_are_not(run):
  ended = run.live(
    'Experiment.actions = [@mishaps.Poison()]',
    'Experiment.checkpoint_every = 5',
    'Experiment.keep = 1',
  )
  assert ended.code == 1
  assert ended.error.startswith('step 46: loss nan')
  finite = [step for step in run.steps() if run.manifest(step)['finite']]
  assert finite == [40]


def test_a_step_that_needs_more_memory_than_there_is(run, quiet):
  ended = run.live(*happening('out_of_memory'))
  assert ended.code == 1
  assert ended.error.startswith('step 43: ')
  assert 'OOM when allocating' in ended.error
  assert 'make the batch smaller' in ended.error
  assert run.steps() == [20, 30, 40], 'half a step was saved'
  run.finish(*happening('out_of_memory'))
  assert run.end() == quiet


@pytest.mark.parametrize('metric', ['huge', 'nan'])
def test_a_metric_that_is_huge_or_nan_harms_nobody(metric, run, quiet):
  run.finish(f'mishaps.make_task.metric = {metric!r}')
  values = [line['accuracy'] for line in run.lines()]
  assert len(values) == 18
  if metric == 'nan':
    assert set(values) == {'nan'}  # strict JSON
  digests = {k: v for k, v in run.end()[0].items() if 'means' not in k}
  assert digests == {k: v for k, v in quiet[0].items() if 'means' not in k}


@pytest.mark.parametrize(
  'metric,said',
  [
    ('text', 'Loss accuracy is string; give numbers'),
    ('entries', 'Loss accuracy has 24 entries for 8 examples; it must be'),
  ],
)
def test_a_metric_that_is_none_is_named_before_step_1(metric, said, run):
  ended = run.live(f'mishaps.make_task.metric = {metric!r}')
  assert ended.code == 2
  assert said in ended.error
  assert not run.model_dir.exists()


def test_batches_of_any_size_in_blocks_of_any_length_are_traced_once(run):
  """A block is 7, 5, 4, ... steps long, and a batch 67, 66, ... rows."""
  ended = run.finish(
    'mishaps.train_data.of_any_size = True',
    'Experiment.steps_per_loop = 7',
    'Experiment.checkpoint_every = 16',
  )
  # Once to build the task, once to compile the loop.
  assert ended.stderr.count('the loss is traced') == 2
