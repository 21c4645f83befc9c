"""Clusters: from variables and flags as schedulers and people set them."""

import json

import pytest

from tftrain import errors
from tftrain.distribute import cluster_resolver

_TWO = {'worker': ['a:1', 'b:2']}


def config(cluster, kind='worker', index=0):
  told = {'cluster': cluster, 'task': {'type': kind, 'index': index}}
  return {'TF_CONFIG': json.dumps(told)}


SLURM = {
  'SLURM_JOB_ID': '1002',
  'SLURM_STEP_NODELIST': 'gpu[08-10],login',
  'SLURM_STEP_NUM_TASKS': '6',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2),1(x2)',
  'SLURM_PROCID': '3',
}
KUBERNETES = {
  'TFTRAIN_NUM_WORKERS': '3',
  'TFTRAIN_SERVICE': 'digits',
  'JOB_COMPLETION_INDEX': '2',
  'HOSTNAME': 'train-mnist-2',
}


@pytest.mark.parametrize(
  ('environment', 'workers', 'task'),
  [
    (config(_TWO, index=1), ['a:1', 'b:2'], 1),
    (config({'chief': ['c:0'], **_TWO}, 'worker', 1), ['c:0', 'a:1', 'b:2'], 2),
    (config({'chief': ['c:0'], **_TWO}, 'chief'), ['c:0', 'a:1', 'b:2'], 0),
    (
      SLURM,
      ['gpu08:2350', 'gpu08:2351', 'gpu09:2350', 'gpu09:2351', 'gpu10:2350',
       'login:2350'],
      3,
    ),
    (
      KUBERNETES,
      [f'train-mnist-{i}.digits:2222' for i in range(3)],
      2,
    ),
  ],
)  # fmt: skip
def test_a_scheduler_is_understood(environment, workers, task):
  found = cluster_resolver.resolve(environment)
  assert (list(found.workers), found.task) == (workers, task)


def test_flags_come_first_and_tensorflow_reads_what_is_written():
  found = cluster_resolver.resolve(config(_TWO), ['x:1', '[::1]:2'], 1)
  assert found.workers == ('x:1', '[::1]:2')
  again = cluster_resolver.resolve({'TF_CONFIG': found.tf_config()})
  assert (again.workers, again.task) == (found.workers, 1)


@pytest.mark.parametrize(
  'environment',
  [
    {},
    {'TF_CONFIG': ''},
    {'TF_CONFIG': '{}'},
    config({'worker': ['a:1']}),
    {**SLURM, 'SLURM_STEP_NUM_TASKS': '1'},
    {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '4'},  # not inside of a job step
  ],
)
def test_one_process_is_no_cluster(environment):
  assert cluster_resolver.resolve(environment) is None


@pytest.mark.parametrize(
  ('environment', 'workers', 'task', 'message'),
  [
    ({}, ['a:1', 'b:2'], None, '--workers needs --task_index'),
    ({}, [], 1, '--task_index=1 needs --workers'),
    ({}, ['a:1', 'b:2'], 2, 'task 2 is none of 2 workers'),
    ({}, ['a:1', 'a:1'], 0, 'a:1 is given twice'),
    ({}, ['a', 'b:2'], 0, "the worker 'a' is no address; write host:port"),
    ({'TF_CONFIG': '{"cluster"'}, [], None, 'TF_CONFIG is not what TensorFlow'),
    ({'TF_CONFIG': '[1]'}, [], None, 'TF_CONFIG is not what TensorFlow'),
    (config({'ps': ['p:1'], **_TWO}), [], None, "no part for a 'ps'"),
    (config(_TWO, 'evaluator'), [], None, '--mode=eval_continuously'),
    (
      {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': '2'},
      [], None, 'is not 6 tasks on 4 nodes',
    ),
    ({**SLURM, 'SLURM_STEP_NODELIST': 'a[3-1]'}, [], None, 'no list of Slurm'),
    ({**SLURM, 'SLURM_STEP_NODELIST': 'a['}, [], None, 'no list of Slurm'),
    ({**SLURM, 'SLURM_PROCID': 'x'}, [], None, "SLURM_PROCID='x' must be"),
    ({**KUBERNETES, 'HOSTNAME': 'web-0'}, [], None, 'not that of pod 2'),
    ({'TFTRAIN_NUM_WORKERS': '3'}, [], None, "JOB_COMPLETION_INDEX='' must"),
  ],
)  # fmt: skip
def test_what_cannot_be_is_said(environment, workers, task, message):
  with pytest.raises(errors.StrategyError, match='.') as raised:
    cluster_resolver.resolve(environment, workers, task)
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('text', 'hosts'),
  [
    ('a', ['a']),
    ('a,b-1', ['a', 'b-1']),
    ('n[1,3-4]-x,b', ['n1-x', 'n3-x', 'n4-x', 'b']),
    ('r[1-2]n[09-10]', ['r1n09', 'r1n10', 'r2n09', 'r2n10']),
  ],
)
def test_node_lists_of_slurm(text, hosts):
  assert cluster_resolver.expand_hosts(text) == hosts


def test_what_one_does_alone_the_first_does():
  for task, takes_part in ((0, True), (1, False)):
    environment = config(_TWO, index=task)
    assert (
      cluster_resolver.enter(environment, [], None, together=False)
      is takes_part
    )
    assert cluster_resolver.resolve(environment) is None
  environment = dict(SLURM)
  assert cluster_resolver.enter(environment, [], None, together=True)
  assert cluster_resolver.resolve(environment).task == 3
  assert 'TF_CONFIG' in environment
