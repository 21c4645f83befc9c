"""Exporter: exports at intervals, with each new best, and of a part."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.support import exported_models
from tests.support import small_tasks
import tftrain
from tftrain import errors
from tftrain.actions import exporter as exporter_lib
from tftrain.export import isolated_process


def names_in(directory):
  return sorted(int(path.name) for path in directory.iterdir())


def test_exports_come_every_so_often_and_the_newest_are_kept(tmp_path):
  (tmp_path / 'export' / 'mine').mkdir(parents=True)
  export = tftrain.actions.Export(every=10, keep=2, fresh=False)
  exported_models.experiment(export=export).train(tmp_path)
  names = {path.name for path in (tmp_path / 'export').iterdir()}
  assert names == {'30', '40', 'mine'}


@pytest.mark.slow
def test_what_was_exported_on_a_way_not_taken_is_set_aside(tmp_path):
  """NaN at step 35: back to 20, and at 30 the weights are others."""
  x, y = small_tasks.arrays(200)
  batches = [(x[i % 25 * 8 :][:8], y[i % 25 * 8 :][:8]) for i in range(60)]
  batches[34] = (batches[34][0] * np.nan, batches[34][1])
  run = tftrain.Experiment(
    exported_models.offering,
    lambda: batches,
    steps=40,
    log_every=5,
    checkpoint_every=20,
    export=tftrain.actions.Export(every=10, keep=9, fresh=False),
    rewind=tftrain.experiment.Rewind(skip_batches=10),
  ).prepare(tmp_path)
  run.train()
  names = {path.name.partition('-')[0] for path in run_exports(tmp_path)}
  assert names == {'10', '20', '30', '40', '30.abandoned'}
  (first,) = (tmp_path / 'export').glob('30.abandoned-*')
  one, other = (
    tf.saved_model.load(str(first)),
    tf.saved_model.load(str(tmp_path / 'export' / '30')),
  )
  of_one = exported_models.served(one, inputs=x)['outputs']
  of_other = exported_models.served(other, inputs=x)['outputs']
  assert (of_one != of_other).numpy().any()


def run_exports(model_dir):
  return list((model_dir / 'export').iterdir())


@pytest.mark.slow
def test_exports_come_with_each_new_best(tmp_path):
  export = tftrain.actions.Export(on_best=True, keep=99, fresh=False)
  best = tftrain.checkpoint.KeepBest('eval/test/loss', 'min')
  exported_models.experiment(export=export, best=best).train(tmp_path)
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  values = [json.loads(line) for line in lines]
  losses = {v['step']: v['loss'] for v in values if v['source'] == 'eval/test'}
  firsts = [
    s for s in losses if losses[s] == min(losses[t] for t in losses if t <= s)
  ]
  assert names_in(tmp_path / 'export') == sorted({*firsts, 40})
  card = (tmp_path / 'export' / '40' / 'model.md').read_text()
  assert 'eval/test/loss' in card


def test_options_that_make_no_sense_are_refused(tmp_path):
  with pytest.raises(errors.ConfigError, match='on_best needs Experiment.best'):
    exported_models.experiment(
      export=tftrain.actions.Export(on_best=True)
    ).prepare(tmp_path)
  with pytest.raises(errors.ConfigError, match="'trunk' is no model of Offer"):
    exported_models.experiment(
      export=tftrain.actions.Export(part='trunk')
    ).prepare(tmp_path)
  with pytest.raises(errors.ConfigError, match='Export.keep'):
    tftrain.actions.Export(keep=0)
  with pytest.raises(errors.ConfigError, match='give a list'):
    tftrain.actions.Export(formats='tflite')
  with pytest.raises(errors.ConfigError, match='no export format'):
    exported_models.experiment(
      export=tftrain.actions.Export(formats=['x'])
    ).prepare(tmp_path)


def test_a_part_is_exported_by_its_name(tmp_path):
  exported_models.experiment(
    export=tftrain.actions.Export(part='model', fresh=False)
  ).train(tmp_path)
  loaded = tf.saved_model.load(str(tmp_path / 'export' / '40'))
  assert list(loaded.signatures) == ['serving_default']


@pytest.fixture
def processes(monkeypatch):
  """The fresh processes that are started."""
  started = []

  class Noted(isolated_process.IsolatedProcess):
    def __init__(self):
      super().__init__()
      started.append(self)

  monkeypatch.setattr(isolated_process, 'IsolatedProcess', Noted)
  return started


@pytest.mark.slow
def test_the_fresh_process_starts_before_the_end_and_serves(
  tmp_path, processes
):
  seen = []
  exported_models.experiment(
    export=True, actions=[lambda _: seen.append(len(processes))]
  ).train(tmp_path)
  assert seen[-1] == 1  # the first may come before it
  found = tmp_path / 'export' / '40' / 'comparison.json'
  assert json.loads(found.read_text())['fresh process'] is True
  assert len(processes) == 1 and not processes[0].is_running


def test_a_run_that_is_stopped_leaves_no_fresh_process(tmp_path, processes):
  def stop(report):
    if processes:
      run.trainer.request_stop()

  run = exported_models.experiment(export=True, actions=[stop]).prepare(
    tmp_path
  )
  assert run.train().exit_code != 0
  (process,) = processes
  assert not process.is_running


@pytest.mark.slow
def test_no_fresh_process_is_started_too_early(processes):
  early = small_tasks.report(
    100, last_step=5000, timing={'steps_per_second': 100.0}
  )
  exporter = tftrain.actions.Export(fresh=True)
  owner = exporter_lib.Exporter('/nowhere', None, lambda: None, exporter)
  owner.start_process(early)
  assert not processes
  owner.start_process(dataclasses.replace(early, step=4500))
  owner.start_process(dataclasses.replace(early, step=4600))
  assert len(processes) == 1
  owner.close()
  assert not processes[0].is_running
