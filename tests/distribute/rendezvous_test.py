"""Rendezvous: workers wait for each other until the deadline."""

import pathlib
import socket
import threading
import time

import pytest

from tests.support import worker_processes
from tftrain import errors
from tftrain.distribute import _rendezvous
from tftrain.distribute import cluster_resolver
from tftrain.distribute import local_launcher


def test_workers_that_come_one_after_the_other_meet():
  addresses = tuple(local_launcher.free_addresses(3))
  come_before, done = [], []
  all_met = threading.Barrier(3)

  def come(task):
    time.sleep(0.3 * task)
    come_before.append(task)
    _rendezvous.wait(
      cluster_resolver.Cluster(addresses, task, 'test'),
      {'TFTRAIN_CLUSTER_DEADLINE': '60'},
    )
    done.append((task, len(come_before)))
    # As TensorFlow does, it listens from now on.
    port = int(addresses[task].rpartition(':')[2])
    with socket.create_server(('', port)):
      all_met.wait(60)

  threads = [threading.Thread(target=come, args=(task,)) for task in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(90)
  assert sorted(task for task, _ in done) == [0, 1, 2]
  assert [count for _, count in done] == [3, 3, 3]  # nobody before the last


def test_who_is_missing_is_named():
  one, two, three = local_launcher.free_addresses(3)
  with socket.create_server(('127.0.0.1', int(two.rpartition(':')[2]))):
    with pytest.raises(errors.StrategyError) as raised:
      _rendezvous.wait(
        cluster_resolver.Cluster(
          (one, two, three, 'no.such.host:1'), 0, 'test'
        ),
        {'TFTRAIN_CLUSTER_DEADLINE': '0.3'},
      )
  assert str(raised.value).startswith(
    f'worker 0 of 4 (test) has waited 0.3 s for workers 2 ({three}), '
    '3 (no.such.host:1); start the same command on all'
  )


def test_a_port_that_is_taken_is_said():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    cluster = cluster_resolver.Cluster((f'localhost:{port}', 'b:2'), 0, 'test')
    with pytest.raises(errors.StrategyError, match=f'listen on port {port}'):
      _rendezvous.wait(cluster)


def test_a_deadline_that_is_no_number():
  cluster = cluster_resolver.Cluster(('a:1', 'b:2'), 0, 'test')
  with pytest.raises(errors.StrategyError, match="DEADLINE='soon' must be"):
    _rendezvous.wait(cluster, {'TFTRAIN_CLUSTER_DEADLINE': 'soon'})


@pytest.mark.parametrize('task', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_worker_that_never_comes_is_one_line(commands, tmp_path, task):
  addresses = local_launcher.free_addresses(2)
  began = time.monotonic()
  ended = worker_processes.alone(
    commands, tmp_path, f'--workers={",".join(addresses)}',
    f'--task_index={task}',
    environment={'TFTRAIN_CLUSTER_DEADLINE': '1'},
  )  # fmt: skip
  assert time.monotonic() - began < 60
  assert ended.code == 2
  assert ended.error.startswith(
    f'worker {task} of 2 (TF_CONFIG) has waited 1 s for worker {1 - task} '
    f'({addresses[1 - task]});'
  )
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('task', [0, 1])
def test_a_worker_that_dies_once_all_have_met_is_one_line(
  commands, tmp_path, task
):
  addresses = local_launcher.free_addresses(2)
  other = cluster_resolver.Cluster(tuple(addresses), 1 - task, 'test')
  patient = {'TFTRAIN_CLUSTER_DEADLINE': '40'}
  # It meets the worker that starts, and never opens its port again.
  thread = threading.Thread(target=_rendezvous.wait, args=(other, patient))
  thread.start()
  began = time.monotonic()
  ended = worker_processes.alone(
    commands, tmp_path, f'--workers={",".join(addresses)}',
    f'--task_index={task}',
    environment={'TFTRAIN_CLUSTER_DEADLINE': '3'},
  )  # fmt: skip
  thread.join()
  assert time.monotonic() - began < 60
  assert ended.code == -9
  assert (
    f'worker {task} of 2 (TF_CONFIG) met the others, but TensorFlow did not '
    f'connect them within 3 s: worker {1 - task} ({addresses[1 - task]}) died; '
    in ended.stderr
  )
  assert not (tmp_path / 'run').exists()


def test_who_connects_in_time_is_left_alone():
  cluster = cluster_resolver.Cluster(
    tuple(local_launcher.free_addresses(2)), 0, 'test'
  )
  children = pathlib.Path(
    f'/proc/self/task/{threading.get_native_id()}/children'
  )
  before = children.read_text()
  with pytest.raises(ValueError, match='of TensorFlow'):
    with _rendezvous.connecting(cluster, {'TFTRAIN_CLUSTER_DEADLINE': '20'}):
      assert len(children.read_text()) > len(before)
      raise ValueError('of TensorFlow')
  assert children.read_text() == before
