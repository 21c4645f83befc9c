"""Digests: SHA-256 of batches and weights, also after kills and rewinds."""

import dataclasses
import hashlib

import numpy as np
import pytest

from tests.support import recorded_runs
from tests.support import small_tasks
import tftrain
from tftrain.actions import digests as digests_lib
from tftrain.interop import tracking


def digests(every, **changes):
  return recorded_runs.experiment(
    actions=[tftrain.actions.Digests(every)], **changes
  )


def sha256(*arrays):
  """By hand, as the docs say: name, dtype and shape, then the bytes."""
  digest = hashlib.sha256()
  for name, array in arrays:
    head = f'{name} {array.dtype.name}{list(array.shape)}\n'
    digest.update(head.encode() + array.tobytes())
  return digest.hexdigest()


def test_digests_are_of_the_batch_taken_and_the_weights_after_it(tmp_path):
  run = digests(2, steps=5).prepare(tmp_path / 'run')
  run.train()
  lines = recorded_runs.read_lines(tmp_path / 'run' / 'digests.jsonl')
  assert [line['step'] for line in lines] == [2, 4, 5]
  batches = recorded_runs.train_data().peek(5)
  for line in lines:
    x, y = batches[line['step'] - 1]
    assert line['batch'] == sha256(('0', x), ('1', y))
  owned = tracking.owned_by(run.trainer.task).variables
  weights = [(name, owned[name].numpy()) for name in sorted(owned)]
  assert lines[-1]['weights'] == sha256(*weights)
  assert len({line['weights'] for line in lines}) == 3


class Killed(BaseException):
  """Ends a run as a kill does: nothing is saved on the way out."""


def kill():
  raise Killed


@pytest.mark.slow
@pytest.mark.parametrize(
  'killed_at', [5, *(pytest.param(at, marks=pytest.mark.slow) for at in (2, 8))]
)
def test_digests_of_a_killed_run_are_those_of_a_whole_one(tmp_path, killed_at):
  digests(1, steps=9).train(tmp_path / 'whole')
  actions = [tftrain.actions.Digests(1), recorded_runs.At(killed_at, kill)]
  with pytest.raises(Killed):
    recorded_runs.experiment(actions=actions, steps=9).train(tmp_path / 'parts')
  path = tmp_path / 'parts' / 'digests.jsonl'
  assert len(path.read_text().splitlines()) == killed_at
  with path.open('a') as file:
    file.write('{"step": 7, "batc')
  digests(1, steps=9).train(tmp_path / 'parts')
  whole = tmp_path / 'whole' / 'digests.jsonl'
  assert path.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_run_that_goes_back_takes_its_digests_back(tmp_path):
  class Once(tftrain.Action):
    """A loss that is not finite, told as a Trainer would."""

    needs_scalars = False

    seen = False

    def next_due(self, step):
      return 5 if step < 5 else None

    def __call__(self, report):
      if report.step == 5 and not Once.seen:
        Once.seen = True
        raise tftrain.errors.NonFiniteError('step 5', step=5)

  recorded_runs.experiment(
    actions=[tftrain.actions.Digests(1), Once()],
    steps=8,
    rewind=tftrain.experiment.Rewind(skip_batches=2),
  ).train(tmp_path / 'run')
  lines = recorded_runs.read_lines(tmp_path / 'run' / 'digests.jsonl')
  assert [line['step'] for line in lines] == list(range(1, 9))
  assert lines[3]['weights'] == lines[4]['weights'] == lines[2]['weights']
  assert lines[4]['weights'] != lines[5]['weights']


def batches(resume):
  x, y = small_tasks.arrays(24)
  parts = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
  return tftrain.data.DatasetPipeline(parts, resume=resume)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('data', 'known'),
  [
    (recorded_runs.cursor_data(), True),
    (tftrain.data.DatasetPipeline(recorded_runs.dataset), False),
    (batches('restart'), False),
    (batches('skip'), True),
    (recorded_runs.train_data(), True),
  ],
)
def test_a_batch_has_a_digest_where_it_can_be_made_again(data, known, tmp_path):
  recipe = dataclasses.replace(digests(1, steps=3), train_data=lambda: data)
  recipe.train(tmp_path)
  found = [
    line['batch']
    for line in recorded_runs.read_lines(tmp_path / 'digests.jsonl')
  ]
  taken = [sha256(('0', x), ('1', y)) for x, y in data.peek(3)]
  assert found == (taken if known else [None] * 3)


def test_where_a_text_ends_counts():
  one, other = (
    tftrain.data.DatasetPipeline([(np.array(texts, object),)], resume='skip')
    for texts in ([b'ab', b'c'], [b'a', b'bc'])
  )
  found = [digests_lib.batch_digest(data.peek(1)[0]) for data in (one, other)]
  assert len(set(found)) == 2


def test_digests_without_a_run_or_a_number_are_refused():
  with pytest.raises(tftrain.Error, match='at least 1, got 0'):
    tftrain.actions.Digests(0)
  with pytest.raises(tftrain.Error, match='Experiment.actions'):
    tftrain.actions.Digests(1)(small_tasks.report(1))
