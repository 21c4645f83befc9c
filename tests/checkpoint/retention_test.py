"""Retention: keeps the newest checkpoints, the best, and some to go back to."""

import itertools
import json
import math

import pytest

from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.checkpoint import format
from tftrain.checkpoint import retention
from tftrain.platform import files

NAN = math.nan


def saved(scores, unfinite=()):
  """One checkpoint at 10, 20, ... for each score."""
  steps = [10 * n for n in range(1, len(scores) + 1)]
  return [
    retention.Saved(step, step not in unfinite, score)
    for step, score in zip(steps, scores, strict=True)
  ]


_NONE = [None] * 6
_BEST = retention.KeepBest('eval/test/loss', 'min')
_TABLE = [
  ({'last': 2}, _NONE, (), {50, 60}),
  ({'last': 9}, _NONE, (), {10, 20, 30, 40, 50, 60}),
  ({'last': 1, 'every': 20}, _NONE, (), {20, 40, 60}),
  ({'last': 1, 'every': 25}, _NONE, (), {30, 50, 60}),
  ({'last': 1}, _NONE, (60,), {50, 60}),
  ({'last': 2}, _NONE, (30, 40, 50, 60), {20, 50, 60}),
  ({'last': 1}, _NONE, (10, 20, 30, 40, 50, 60), {60}),
  ({'last': 1, 'best': _BEST}, [5, 3, 4, 3, 9, 8], (), {20, 60}),
  ({'last': 1, 'best': _BEST}, [NAN, NAN, 7, NAN, 9, 8], (), {30, 60}),
  ({'last': 1, 'best': _BEST}, [None, 9, None, NAN, None, None], (), {20, 60}),
  (
    {'last': 1, 'best': retention.KeepBest('a/b', 'max', keep=2)},
    [5, 3, 4, 5, NAN, 1],
    (),
    {10, 40, 60},
  ),
  ({'last': 1, 'behind': 15}, _NONE, (), {40, 60}),
  ({'last': 1, 'behind': 20}, _NONE, (40,), {30, 60}),
  ({'last': 1, 'behind': 70}, _NONE, (), {60}),
  (
    {'last': 1, 'every': 50, 'behind': 30, 'best': _BEST},
    [5, 0, 4, 5, 3, 1],
    (60,),
    {20, 30, 50, 60},
  ),
]


@pytest.mark.parametrize('options, scores, unfinite, expected', _TABLE)
def test_what_is_kept(options, scores, unfinite, expected):
  kept = retention.Retention(**options).kept(saved(scores, unfinite))
  assert kept == expected


def _by_hand(all_of_them, last, every, best, behind):
  """The rules one after another, written without a look at the other."""
  steps = [one.step for one in all_of_them]
  good = [one.step for one in all_of_them if one.finite]
  kept = set(steps[len(steps) - last :] if last < len(steps) else steps)
  if good:
    kept.add(good[-1])
  for multiple in range(every, steps[-1] + 1, every):
    later = [s for s in steps if multiple <= s < multiple + every]
    kept.update(later[:1])
  left = [one for one in all_of_them if one.score is not None]
  for _ in range(min(best, len(left))):
    top = left[0]
    for one in left:
      worse = math.isnan(top.score) and not math.isnan(one.score)
      if worse or one.score > top.score:
        top = one
    kept.add(top.step)
    left.remove(top)
  far = [step for step in good if steps[-1] - step >= behind]
  return kept | set(far[-1:])


def test_all_rules_together_agree_with_a_slow_and_plain_one():
  for scores in itertools.product((None, NAN, 1.0, 2.0), repeat=4):
    for unfinite in ((), (40,), (20, 40), (10, 20, 30, 40)):
      ours = saved(scores, unfinite)
      for last, every, best, behind in ((1, 20, 1, 10), (2, 15, 2, 25)):
        rules = retention.Retention(
          last=last,
          every=every,
          best=retention.KeepBest('a/b', keep=best),
          behind=behind,
        )
        expected = _by_hand(ours, last, every, best, behind)
        assert rules.kept(ours) == expected, (scores, unfinite, last)


@pytest.mark.parametrize(
  'make',
  [
    lambda: retention.KeepBest('a/b', 'most'),
    lambda: retention.KeepBest('a/b', keep=0),
    lambda: retention.Retention(last=0),
    lambda: retention.Retention(every=0),
    lambda: retention.Retention(last=1.5),
  ],
)
def test_what_makes_no_sense_is_refused(make):
  with pytest.raises(errors.ConfigError):
    make()


def experiment(**changes):
  options = {
    'steps': 60,
    'log_every': 10,
    'eval_every': 10,
    'checkpoint_every': 30,
    'keep': 1,
    'export': False,
    'best': tftrain.checkpoint.KeepBest('eval/test/accuracy'),
    **changes,
  }
  return tftrain.Experiment(
    lambda: small_tasks.supervised(dropout=0.2),
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(seed=3), 8, training=False),
    **options,
  )


def lines(model_dir, source='eval/test'):
  text = (model_dir / 'metrics.jsonl').read_text()
  found = [json.loads(line) for line in text.splitlines()]
  return [line for line in found if line['source'] == source]


def best_of(found, tag='accuracy'):
  return max(found, key=lambda line: line[tag])['step']


def test_the_best_survives_and_is_found_again(tmp_path):
  run = experiment().prepare(tmp_path)
  run.train()
  best = best_of(lines(tmp_path))
  assert run.checkpointer.best_step() == best
  assert set(run.checkpointer.steps()) == {best, 60}
  again = experiment(steps=100)
  again.train(tmp_path)
  best = best_of(lines(tmp_path))
  prepared = again.prepare(tmp_path)
  assert prepared.checkpointer.best_step() == best
  assert set(prepared.checkpointer.steps()) == {best, 100}
  result = again.evaluate(tmp_path, 'best')
  assert result.step == best
  (line,) = [line for line in lines(tmp_path) if line['step'] == best]
  assert result.scalars['eval/test/accuracy'] == line['accuracy']


@pytest.mark.slow
def test_a_best_that_came_early_outlives_a_restart(tmp_path):
  """The metric is best at the second evaluation, and never again."""
  best = tftrain.checkpoint.KeepBest('eval/test/loss', 'min')
  experiment(best=best, steps=30).train(tmp_path)
  experiment(best=best).train(tmp_path)
  run = experiment(best=best).prepare(tmp_path)
  assert run.checkpointer.steps() == [20, 60]
  assert run.evaluate('best').step == 20


def test_an_unknown_metric_or_checkpoint_is_refused(tmp_path):
  unknown = experiment(best=tftrain.checkpoint.KeepBest('eval/test/acuracy'))
  with pytest.raises(errors.ConfigError, match='best waits.*eval/test/acc'):
    unknown.prepare(tmp_path)
  assert list(tmp_path.iterdir()) == []
  plain = experiment(best=None, steps=10)
  plain.train(tmp_path)
  for which in ('best', '7', 'first'):
    with pytest.raises(errors.CheckpointError, match=f'{which}.*there are 10'):
      plain.evaluate(tmp_path, which)


@pytest.mark.slow
def test_patience_goes_on_in_the_next_life(tmp_path):
  def early(name, stop_at=None):
    run = None

    def stop(report):
      if report.step == stop_at and run is not None:
        run.trainer.request_stop()

    run = experiment(
      best=None,
      steps=200,
      early_stop=tftrain.EarlyStopping('eval/test/loss', 4),
      actions=[stop],
    ).prepare(tmp_path / name)
    run.train()
    return run

  assert early('whole').trainer.step == 60  # 20 is the best, and 4 more
  cut = early('cut', 30)
  assert cut.trainer.step == 30
  resumed = early('cut')
  assert resumed.trainer.step == 60
  assert lines(tmp_path / 'cut') == lines(tmp_path / 'whole')


def failing(monkeypatch, at):
  """Makes the saves of the steps `at` fail."""
  write = format.write_checkpoint

  def maybe(directory, step, state, said):
    if step in at:
      raise OSError(28, 'No space left on device')
    write(directory, step, state, said)

  monkeypatch.setattr(format, 'write_checkpoint', maybe)


def test_a_failed_save_may_be_survived(tmp_path, monkeypatch, caplog):
  options = {'best': None, 'checkpoint_every': 10, 'keep': 9}
  failing(monkeypatch, {20, 40})
  run = experiment(max_failed_saves=1, **options).prepare(tmp_path)
  assert run.train().step == 60
  assert run.checkpointer.steps() == [10, 30, 50, 60]
  assert caplog.text.count('going on without') == 2


def test_too_many_failed_saves_in_a_row_end_the_run(tmp_path, monkeypatch):
  options = {'best': None, 'checkpoint_every': 10, 'keep': 9}
  failing(monkeypatch, {20, 30})
  run = experiment(max_failed_saves=1, **options).prepare(tmp_path)
  with pytest.raises(errors.CheckpointError, match='step 30.*at step 10'):
    run.train()
  assert run.checkpointer.steps() == [10]


def test_the_last_save_may_not_fail(tmp_path, monkeypatch):
  failing(monkeypatch, {60})
  run = experiment(max_failed_saves=9, best=None).prepare(tmp_path)
  with pytest.raises(errors.CheckpointError, match='step 60.*at step 30'):
    run.train()


def test_a_disk_that_will_be_full_is_said_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'free_bytes', lambda _: 3_000)
  run = experiment().prepare(tmp_path)
  with pytest.raises(errors.RunDirectoryError, match='3 more checkpoints'):
    run.train()
  assert run.trainer.step == 0
  assert not (tmp_path / 'metrics.jsonl').exists()
