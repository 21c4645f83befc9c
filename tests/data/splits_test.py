"""Splits: held-out examples, and the shares of several hosts."""

import numpy as np
import pytest

from tests.support import data_errors
from tests.support import stored_examples
import tftrain


def numbers_of(pipeline):
  batches = stored_examples.only_batches(pipeline)
  return [int(n) for batch in batches for n in batch['number']]


@pytest.mark.parametrize(
  'name',
  stored_examples.some_slow(
    ['records', 'bare gzip records', 'csv', 'memory', 'access', 'mapped'],
    ['records', 'bare gzip records', 'csv', 'access', 'mapped'],
  ),
)
def test_what_is_held_out_is_disjoint_complete_and_the_same_each_time(
  name, tmp_path
):
  source, found = stored_examples.SOURCES[name](tmp_path)
  options = {
    'training': False,
    'holdout': 0.3,
    'batcher': tftrain.data.Ragged(),
  }
  parts = {
    subset: tftrain.data.Examples(source, 5, subset=subset, **options)
    for subset in ('train', 'holdout')
  }
  train, held_out = (numbers_of(parts[s]) for s in ('train', 'holdout'))
  assert sorted(train + held_out) == list(range(stored_examples.SIZE))
  assert 4 <= len(held_out) <= 18
  assert (
    len({stored_examples.key(one) for one in found}) == stored_examples.SIZE
  )
  assert parts['train'].num_examples == len(train)
  assert parts['holdout'].num_examples == len(held_out)
  again = tftrain.data.Examples(source, 5, subset='holdout', **options)
  assert numbers_of(again) == held_out
  training = tftrain.data.Examples(
    source,
    5,
    holdout=0.3,
    epochs=2,
    shuffle=stored_examples.WINDOW,
    batcher=tftrain.data.Ragged(),
  )
  assert sorted(numbers_of(training)) == sorted(2 * train)


@pytest.mark.parametrize('kind', ['records', 'memory'])
def test_who_is_held_out_does_not_depend_on_the_other_examples(kind, tmp_path):
  def held_out(size, folder):
    if kind == 'memory':
      source = tftrain.data.InMemory(
        stored_examples.stacked(
          stored_examples.all_examples(stored_examples.DENSE, size)
        )
      )
    else:
      stored_examples.write_bare(
        tmp_path / f'{folder}.rec',
        stored_examples.all_examples(stored_examples.DENSE, size),
      )
      source = tftrain.data.TFRecords(
        tmp_path / f'{folder}.rec', stored_examples.DENSE
      )
    pipeline = tftrain.data.Examples(
      source, 5, training=False, holdout=0.3, subset='holdout'
    )
    return set(numbers_of(pipeline))

  before, after = held_out(37, 'few'), held_out(90, 'many')
  assert before
  assert {number for number in after if number < 37} == before
  assert len(after) > len(before)


def test_the_share_held_out_is_the_one_asked_for():
  source = stored_examples.numbered(0, 20_000)
  for share in (0.01, 0.2, 0.5):
    pipeline = tftrain.data.Examples(
      source, 100, holdout=share, subset='holdout'
    )
    expected = 20_000 * share
    spread = 5 * (expected * (1 - share)) ** 0.5
    assert abs(pipeline.num_examples - expected) < spread


@pytest.mark.parametrize(
  ('kind', 'hosts', 'holdout'),
  [
    ('records', 2, None),  # there are 3 files: by files
    pytest.param('records', 5, None, marks=pytest.mark.slow),  # by records
    ('memory', 2, 0.4),
    pytest.param('records', 2, 0.4, marks=pytest.mark.slow),
    pytest.param('records', 5, 0.4, marks=pytest.mark.slow),
  ],
)
def test_hosts_share_all_examples_without_overlap(
  kind, hosts, holdout, tmp_path
):
  source, _ = stored_examples.SOURCES[kind](tmp_path)
  options = {'batcher': tftrain.data.Ragged(), 'holdout': holdout}
  whole = tftrain.data.Examples(source, 10, training=False, **options)
  parts, shuffled = [], []
  for host in range(hosts):
    share = {'shard': (host, hosts), **options}
    part = tftrain.data.Examples(source, 10, training=False, **share)
    numbers = numbers_of(part)
    assert part.num_examples == len(numbers)
    parts += numbers
    training = tftrain.data.Examples(source, 10, epochs=1, shuffle=8, **share)
    batches = stored_examples.only_batches(training)
    assert len(stored_examples.rows(batches[0])) == 10 // hosts
    shuffled += [int(n) for batch in batches for n in batch['number']]
  expected = sorted(numbers_of(whole))
  assert sorted(parts) == expected
  assert sorted(shuffled) == expected


def test_an_epoch_takes_as_many_steps_on_each_of_two_hosts_as_on_one():
  source = stored_examples.numbered(0, 40)
  alone = tftrain.data.Examples(source, 10)
  host = tftrain.data.Examples(source, 10, shard=(1, 2))
  assert alone.steps_per_epoch == host.steps_per_epoch == 4


@pytest.mark.slow
def test_a_host_resumes_its_share(records):
  for hosts in (3, 5):
    pipeline = tftrain.data.Examples(
      records.source,
      15,
      shard=(1, hosts),
      shuffle=stored_examples.WINDOW,
      batcher=tftrain.data.Ragged(),
    )
    stored_examples.assert_resumes(pipeline, [2, 5, 9], 12)


def test_what_cannot_be_shared_or_held_out():
  source = tftrain.data.Generator(lambda: range(3))
  with data_errors.refused(
    'Generator cannot be dealt to 2 hosts; give each host a source of its own'
  ):
    tftrain.data.Examples(source, 2, shard=(0, 2))
  with data_errors.refused(
    'Generator cannot hold examples out; give training and evaluation a source '
    'each'
  ):
    tftrain.data.Examples(source, 2, holdout=0.5)
  with data_errors.refused(
    'InMemory: none of its 3 examples are left; hold out another '
    'share, or take fewer hosts'
  ):
    tftrain.data.Examples(
      tftrain.data.InMemory(np.arange(3)), 2, holdout=1e-6, subset='holdout'
    )
