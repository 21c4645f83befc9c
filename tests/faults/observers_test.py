"""Observers of a run in training: evaluators and TensorBoard."""

import shutil

import pytest

pytestmark = pytest.mark.slow

_FOLLOW = '--mode=eval_continuously'
_TRAIN = '--mode=train'
_SLOW_READS = 'Experiment.actions = [@mishaps.SlowReads()]'


def test_an_evaluator_outlives_the_removal_of_what_it_reads(run):
  slow = ['mishaps.make_task.pause = 0.08']
  keep = 'Experiment.keep = 1'
  trainer = run.started_until(10, *slow, keep, flags=[_TRAIN])
  ended = run.finish(*slow, _SLOW_READS, flags=[_FOLLOW])
  assert 'was removed before it was evaluated' in ended.stderr
  assert 'damaged' not in ended.stderr
  assert 'the run has finished' in ended.stdout
  assert trainer.wait().code == 0
  steps = [line['step'] for line in run.lines('eval_metrics.jsonl')]
  assert steps == sorted(set(steps)) and steps[-1] == 80


def test_an_evaluator_whose_trainer_was_killed_gives_up(run, quiet):
  run.killed_at(45, flags=[_TRAIN])
  ended = run.live(flags=[_FOLLOW, '--eval_timeout=1'])
  assert ended.code == 2
  assert 'nobody has trained there for 1 s' in ended.error
  steps = [line['step'] for line in run.lines('eval_metrics.jsonl')]
  assert steps == run.steps()
  # And is there again when the training is.
  run.finish(flags=[_TRAIN])
  assert run.finish(flags=[_FOLLOW]).stdout.startswith('Done: evaluated')
  assert run.end()[0] == quiet[0]


def test_a_killed_evaluator_goes_on_where_it_was(run):
  run.finish('mishaps.make_task.eval_pause = 0.3', flags=[_TRAIN])
  follower = run.start('mishaps.make_task.eval_pause = 0.3', flags=[_FOLLOW])
  follower.until(lambda: run.lines('eval_metrics.jsonl'), 'a line')
  follower.send('SIGKILL')
  follower.wait()
  done = len(run.lines('eval_metrics.jsonl'))
  ended = run.finish('mishaps.make_task.eval_pause = 0.3', flags=[_FOLLOW])
  assert f'Done: evaluated {3 - done} checkpoint' in ended.stdout
  steps = [line['step'] for line in run.lines('eval_metrics.jsonl')]
  assert steps == run.steps()
  assert run.charted('eval/test') == steps


def test_a_signal_stops_an_evaluator_and_the_same_command_goes_on(run):
  slow = 'mishaps.make_task.eval_pause = 0.3'
  run.finish(slow, flags=[_TRAIN])
  flags = [_FOLLOW, '--stop_signals=SIGUSR2', '--preempt_exit_code=75']
  follower = run.start(slow, flags=flags)
  follower.until(lambda: run.lines('eval_metrics.jsonl'), 'a line')
  follower.send('SIGUSR2')
  ended = follower.wait()
  assert ended.code == 75
  assert 'Stopped; evaluated 1 checkpoint. The same' in ended.stdout
  run.finish(slow, flags=flags)
  steps = [line['step'] for line in run.lines('eval_metrics.jsonl')]
  assert steps == run.steps()


def test_the_best_checkpoint_is_what_is_evaluated_and_exported(run):
  best = [
    'Experiment.best = @KeepBest()',
    "KeepBest.metric = 'eval/test/accuracy'",
  ]
  best += ['Experiment.eval_every = 10']
  run.finish(*best)
  evals = [l for l in run.lines() if l['source'] == 'eval/test']
  step = max(evals, key=lambda line: (line['accuracy'], -line['step']))['step']
  ended = run.finish(*best, flags=['--mode=eval', '--checkpoint=best'])
  assert f'Evaluated the checkpoint of step {step}.' in ended.stdout
  run.finish(*best, flags=['--mode=export', '--checkpoint=best'])
  assert [p.name for p in (run.model_dir / 'export').iterdir()] == [str(step)]
  ended = run.live(flags=['--mode=eval', '--checkpoint=33'])
  assert ended.code == 2


def test_each_step_is_on_the_charts_once_whatever_was_killed(run, quiet):
  for step in (25, 45, 60):
    run.killed_at(step)
  run.finish()
  assert run.charted('train') == list(range(5, 81, 5))
  assert run.charted('eval/test') == [40, 80]
  assert run.end() == quiet


def test_summaries_that_are_removed_cost_no_step(run, quiet):
  life = run.started_until(25)
  shutil.rmtree(run.model_dir / 'train')
  assert life.wait().code == 0
  assert run.end() == quiet
