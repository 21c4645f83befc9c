"""The files of examples/cluster, with the environment that each gives."""

import json
import pathlib
import re
import shlex

import pytest

from tests.support import paths
from tftrain.distribute import cluster_resolver
from tftrain.distribute import local_launcher

_FOLDER = paths.ROOT / 'examples' / 'cluster'
_SHORT = (
  '--gin.STEPS=8', '--gin.Experiment.log_every=4', '--gin.BATCH_SIZE=32',
  '--gin.Experiment.limit_eval_batches=2', '--gin.Experiment.export=False',
)  # fmt: skip


def read(name):
  yaml = pytest.importorskip('yaml')
  return list(yaml.safe_load_all((_FOLDER / name).read_text()))


def slurm_command():
  """What the script runs, and how many tasks it has."""
  text = (_FOLDER / 'digits.sbatch').read_text()
  options = dict(re.findall(r'^#SBATCH --([\w-]+)=(\S+)$', text, re.M))
  (line,) = re.findall(r'^srun (.*)$', text.replace('\\\n', ''), re.M)
  tasks = int(options['nodes']) * int(options['ntasks-per-node'])
  return shlex.split(line), tasks


def slurm_environment(nodes, per_node, task, job='70'):
  return {
    'SLURM_JOB_ID': job,
    'SLURM_STEP_NODELIST': nodes,
    'SLURM_STEP_NUM_TASKS': str(slurm_command()[1]),
    'SLURM_STEP_TASKS_PER_NODE': per_node,
    'SLURM_PROCID': str(task),
  }


def services():
  (content,) = read('compose.yaml')
  return content['services']


def test_slurm():
  found = [
    cluster_resolver.resolve(slurm_environment('gpu[01-02]', '1(x2)', task))
    for task in range(slurm_command()[1])
  ]
  assert [one.task for one in found] == [0, 1]
  assert {one.workers for one in found} == {('gpu01:6702', 'gpu02:6702')}


def test_kubernetes():
  service, job = read('digits.yaml')
  spec = job['spec']
  pod = spec['template']['spec']
  (container,) = pod['containers']
  assert spec['completionMode'] == 'Indexed'
  assert spec['completions'] == spec['parallelism']
  assert pod['subdomain'] == service['metadata']['name']
  assert service['spec']['clusterIP'] == 'None'  # headless
  assert service['spec']['selector'] == {'job-name': job['metadata']['name']}
  given = {one['name']: one['value'] for one in container['env']}
  found = [
    cluster_resolver.resolve(
      {
        **given,
        'HOSTNAME': f'{job["metadata"]["name"]}-{index}',
        'JOB_COMPLETION_INDEX': str(index),
      }
    )
    for index in range(spec['completions'])
  ]
  assert [one.task for one in found] == [0, 1]
  expected = ('digits-0.digits:2222', 'digits-1.digits:2222')
  assert {one.workers for one in found} == {expected}
  assert service['spec']['ports'] == [{'port': 2222}]


def test_compose():
  found = [
    cluster_resolver.resolve(service['environment'])
    for service in services().values()
  ]
  assert [one.task for one in found] == [0, 1]
  assert {one.workers for one in found} == {
    tuple(f'{name}:{cluster_resolver.PORT}' for name in services())
  }
  text = (_FOLDER / 'Dockerfile').read_text()
  assert text.startswith('FROM python:3.11')


def test_all_run_the_same_command():
  container = read('digits.yaml')[1]['spec']['template']['spec']['containers']
  commands = [
    slurm_command()[0],
    container[0]['command'],
    *(service['command'] for service in services().values()),
  ]
  assert commands == [commands[0]] * 4
  assert commands[0][:3] == [
    'tftrain',
    '--gin_file=configs/digits.gin',
    '--model_dir=/shared/digits',
  ]


def train(commands, directory, argv, environments):
  """Runs the command of a file as real workers, for a few steps."""
  arguments = [
    word.replace('/shared/digits', str(directory / 'run')) for word in argv[1:]
  ]
  started = [
    commands.start(*arguments, *_SHORT, environment=environment)
    for environment in environments
  ]
  ended = [one.wait() for one in started]
  assert [one.code for one in ended] == [0, 0], [one.stderr for one in ended]
  record = json.loads((directory / 'run' / 'run.json').read_text())
  assert record['finished']['step'] == 8
  assert record['attempts'][0]['replicas'] == 2


@pytest.mark.slow
def test_the_workers_of_slurm_train(commands, tmp_path):
  # One node has both tasks here, so that they get two ports of it.
  job = next(str(n) for n in range(100, 200) if is_free(f'{n}'))
  environments = [
    slurm_environment('127.0.0.1', '2', task, job) for task in range(2)
  ]
  train(commands, tmp_path, slurm_command()[0], environments)


def is_free(job):
  found = cluster_resolver.resolve(slurm_environment('127.0.0.1', '2', 0, job))
  ports = [int(address.rpartition(':')[2]) for address in found.workers]
  text = pathlib.Path('/proc/net/tcp').read_text()
  return not any(f':{port:04X} ' in text for port in ports)


@pytest.mark.slow
def test_the_workers_of_compose_train(commands, tmp_path):
  places = dict(zip(services(), local_launcher.free_addresses(2), strict=True))
  environments, argv = [], []
  for service in services().values():
    text = service['environment']['TF_CONFIG']
    for name, address in places.items():
      text = text.replace(f'{name}:2222', address)
    environments.append({'TF_CONFIG': text})
    argv = service['command']
  train(commands, tmp_path, argv, environments)
