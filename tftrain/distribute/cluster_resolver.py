"""Resolves the cluster from flags, TF_CONFIG, Kubernetes or Slurm."""

from collections.abc import Mapping
from collections.abc import MutableMapping
from collections.abc import Sequence
import dataclasses
import json
import re
from typing import Any

from tftrain import errors

PORT = 2222
"""The default port of workers for which a scheduler gives only the hosts."""


_VARIABLES = (
  'TF_CONFIG',
  'TFTRAIN_NUM_WORKERS',
  'SLURM_STEP_NODELIST',
)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The workers of one run, and the index of this process among them.

  Attributes:
    workers: `host:port` of each worker, the same list on all workers; the
      first is the chief worker.
    task: Index of this worker, from 0.
    origin: Source of the description, for messages.

  Raises:
    StrategyError: If an address in `workers` is malformed or duplicated, or
      `task` is out of range.
  """

  workers: tuple[str, ...]
  task: int
  origin: str

  def __post_init__(self) -> None:
    for address in self.workers:
      if not re.fullmatch(r'(\[[\da-fA-F:]+\]|[^\s:,]+):\d{1,5}', address):
        raise errors.StrategyError(
          f'{self.origin}: the worker {address!r} is no address; write '
          'host:port'
        )
      if self.workers.count(address) > 1:
        raise errors.StrategyError(
          f'{self.origin}: {address} is given twice; each worker needs a port '
          'of its own'
        )
    if not 0 <= self.task < len(self.workers):
      raise errors.StrategyError(
        f'{self.origin}: task {self.task} is none of {len(self.workers)} '
        'workers; they are counted from 0'
      )

  @property
  def this(self) -> str:
    """The description of this worker, for messages."""
    return f'worker {self.task} of {len(self.workers)} ({self.origin})'

  @property
  def others(self) -> list[str]:
    """The addresses of all workers except this one."""
    return [a for a in self.workers if a != self.workers[self.task]]

  def tf_config(self) -> str:
    """Returns the cluster as the JSON of the variable TF_CONFIG."""
    cluster = {'worker': list(self.workers)}
    task = {'type': 'worker', 'index': self.task}
    return json.dumps({'cluster': cluster, 'task': task})


def resolve(
  environment: Mapping[str, str],
  workers: Sequence[str] = (),
  task: int | None = None,
) -> Cluster | None:
  """Returns the cluster that flags or the environment describe, or None.

  Flags take precedence over TF_CONFIG, then Kubernetes, then Slurm. A single
  worker does not count as a cluster.

  Args:
    environment: `os.environ`.
    workers: Value of the flag `--workers`.
    task: Value of the flag `--task_index`.

  Raises:
    StrategyError: If the flags or environment describe an invalid cluster.
  """
  if not workers and task is not None:
    raise errors.StrategyError(
      f'--task_index={task} needs --workers=host:port,...; leave it out'
    )
  found: Cluster | None = None
  if workers:
    found = _of_flags(workers, task)
  elif environment.get('TF_CONFIG', '').strip():
    found = _of_tf_config(environment['TF_CONFIG'])
  elif 'TFTRAIN_NUM_WORKERS' in environment:
    found = _of_kubernetes(environment)
  elif 'SLURM_STEP_NODELIST' in environment:
    found = _of_slurm(environment)
  return found if found and len(found.workers) > 1 else None


def enter(
  environment: MutableMapping[str, str],
  workers: Sequence[str],
  task: int | None,
  together: bool,
) -> bool:
  """Writes the cluster to the environment, for `make_strategy`.

  Args:
    environment: `os.environ`.
    workers: Value of the flag `--workers`.
    task: Value of the flag `--task_index`.
    together: Whether all workers take part; otherwise the chief worker runs
      alone, and the cluster is removed from the environment.

  Returns:
    Whether this process takes part.

  Raises:
    StrategyError: If the flags or environment describe an invalid cluster.
  """
  cluster = resolve(environment, workers, task)
  if cluster is None:
    return True
  if together:
    environment['TF_CONFIG'] = cluster.tf_config()
    return True
  leave(environment)
  return cluster.task == 0


def leave(environment: MutableMapping[str, str]) -> None:
  """Removes any cluster from the environment: the process runs alone."""
  for name in _VARIABLES:
    environment.pop(name, None)


def _of_flags(workers: Sequence[str], task: int | None) -> Cluster:
  if task is None:
    raise errors.StrategyError(
      '--workers needs --task_index, the number of this process among them'
    )
  return Cluster(tuple(workers), task, '--workers')


def _of_tf_config(text: str) -> Cluster | None:
  try:
    told = json.loads(text)
    jobs: Mapping[str, Any] = told.get('cluster', {})
    task = told.get('task', {})
    kind, index = str(task.get('type', 'worker')), int(task.get('index', 0))
    chiefs, workers = list(jobs.get('chief', [])), list(jobs.get('worker', []))
  except (ValueError, TypeError, AttributeError) as error:
    raise errors.StrategyError(
      f'TF_CONFIG is not what TensorFlow takes ({errors.one_line(error)}); '
      'write {"cluster": {"worker": ["host:port", ...]}, "task": {"type": '
      '"worker", "index": 0}}'
    ) from error
  if not jobs:
    return None
  if 'ps' in jobs or kind not in ('chief', 'worker'):
    what = 'ps' if 'ps' in jobs else kind
    raise errors.StrategyError(
      f'TF_CONFIG: there is no part for a {what!r} here; give chief and worker '
      'only, and evaluate aside with --mode=eval_continuously'
    )
  index += len(chiefs) if kind == 'worker' else 0
  return Cluster((*chiefs, *workers), index, 'TF_CONFIG')


def _of_kubernetes(environment: Mapping[str, str]) -> Cluster:
  """Returns the pods of an Indexed Job, named `<job>-<index>.<service>`."""
  count = _environment_number(environment, 'TFTRAIN_NUM_WORKERS')
  task = _environment_number(environment, 'JOB_COMPLETION_INDEX')
  port = _environment_number(environment, 'TFTRAIN_PORT', PORT)
  host = environment.get('HOSTNAME', '').partition('.')[0]
  job, dash, index = host.rpartition('-')
  if not dash or index != str(task):
    raise errors.StrategyError(
      f'HOSTNAME={host!r} is not that of pod {task} of an Indexed Job, '
      f'<job>-{task}; give --workers and --task_index instead'
    )
  service = environment.get('TFTRAIN_SERVICE', '')
  domain = f'.{service}' if service else ''
  hosts = [f'{job}-{i}{domain}:{port}' for i in range(count)]
  return Cluster(tuple(hosts), task, 'TFTRAIN_NUM_WORKERS')


def _of_slurm(environment: Mapping[str, str]) -> Cluster | None:
  """Returns the tasks of a Slurm job step: those that one `srun` starts."""
  count = _environment_number(environment, 'SLURM_STEP_NUM_TASKS')
  if count == 1:
    return None
  hosts = expand_hosts(environment['SLURM_STEP_NODELIST'])
  text = environment.get('SLURM_STEP_TASKS_PER_NODE', '')
  per_host = expand_counts(text)
  if len(per_host) != len(hosts) or sum(per_host) != count:
    raise errors.StrategyError(
      f'SLURM_STEP_TASKS_PER_NODE={text!r} is not {count} tasks on '
      f'{len(hosts)} nodes; give --workers and --task_index instead'
    )
  # Jobs that share a node must not share ports.
  first = PORT + 64 * (
    _environment_number(environment, 'SLURM_JOB_ID', 0) % 500
  )
  addresses = [
    f'{host}:{first + local}'
    for host, tasks in zip(hosts, per_host, strict=True)
    for local in range(tasks)
  ]
  return Cluster(
    tuple(addresses), _environment_number(environment, 'SLURM_PROCID'), 'Slurm'
  )


def expand_hosts(text: str) -> list[str]:
  """Returns the hosts of a Slurm node list: `a[1,03-05],b` has five.

  Raises:
    StrategyError: If `text` is not a node list.
  """
  hosts: list[str] = []
  for item in re.findall(r'(?:[^,\[\]]|\[[^\]]*\])+', text):
    hosts += _expanded(item)
  if not hosts or text.count('[') != text.count(']'):
    raise errors.StrategyError(
      f'{text!r} is no list of Slurm nodes; give --workers and --task_index '
      'instead'
    )
  return hosts


def _expanded(item: str) -> list[str]:
  found = re.fullmatch(r'([^\[]*)\[([^\]]*)\](.*)', item)
  if not found:
    return [item]
  names = []
  for part in found[2].split(','):
    span = re.fullmatch(r'(\d+)(?:-(\d+))?', part)
    if not span or int(span[2] or span[1]) < int(span[1]):
      raise errors.StrategyError(f'{item!r} is no list of Slurm nodes')
    width = len(span[1])
    for number in range(int(span[1]), int(span[2] or span[1]) + 1):
      names.append(f'{found[1]}{number:0{width}d}{found[3]}')
  return [name for whole in names for name in _expanded(whole)]


def expand_counts(text: str) -> list[int]:
  """Returns the tasks on each Slurm node: `2(x3),1` is [2, 2, 2, 1].

  An invalid `text` gives an empty list.
  """
  counts: list[int] = []
  for part in text.split(','):
    found = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part.strip())
    if not found:
      return []
    counts += [int(found[1])] * int(found[2] or 1)
  return counts


def _environment_number(
  environment: Mapping[str, str], name: str, default: int | None = None
) -> int:
  text = environment.get(name, '' if default is None else str(default))
  if not text.strip().isdecimal():
    raise errors.StrategyError(
      f'{name}={text!r} must be a whole number; set it, or give --workers and '
      '--task_index'
    )
  return int(text)
