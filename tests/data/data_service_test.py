"""The tf.data service: the same batches, also from real processes that die."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.support import small_tasks
from tests.support import stored_examples
import tftrain
from tftrain import errors
from tftrain.data import _data_service


@pytest.fixture(scope='module')
def service():
  servers = tf.data.experimental.service
  dispatcher = servers.DispatchServer()
  address = dispatcher.target.split('://')[1]
  worker = servers.WorkerServer(
    servers.WorkerConfig(dispatcher_address=address)
  )
  yield dispatcher.target
  del worker, dispatcher


@pytest.mark.slow
def test_a_tf_data_service_makes_the_same_batches(service, records):
  for options in ({}, {'filter': stored_examples.long_enough}):
    own = stored_examples.run(records.pipeline(**options), 12)
    served = records.pipeline(service=service, **options)
    for _ in range(2):
      found = stored_examples.run(served, 12)
      assert stored_examples.flat(b for b, _ in found) == stored_examples.flat(
        b for b, _ in own
      )
    resumed = stored_examples.run(served, 7, step=5, cursor=own[4][1])
    assert stored_examples.flat(b for b, _ in resumed) == stored_examples.flat(
      b for b, _ in own[5:]
    )


def test_a_dead_service_is_an_error(records):
  with contextlib.closing(socket.socket()) as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  with pytest.raises(
    errors.InputError,
    match=rf'^no tf.data service answers at grpc://localhost:{port} \(.*'
    r'refused\); start its dispatcher, or leave Examples.service out$',
  ):
    records.pipeline(service=f'grpc://localhost:{port}')
  for address in ('localhost:1', 'grpc://localhost', 'http://a:1', ''):
    with pytest.raises(errors.ConfigError, match='Examples.service = .*grpc'):
      records.pipeline(service=address)


_BATCH = 8


def free_port():
  with contextlib.closing(socket.socket()) as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


class Servers:
  """One dispatcher and its workers."""

  def __init__(self, directory):
    self.port = free_port()
    self._work_dir = directory
    self._all = []
    self._log = (directory / 'log').open('w')

  def _start(self, *arguments):
    process = subprocess.Popen(
      [sys.executable, '-m', 'tftrain.data.data_service_server', *arguments],
      stdout=subprocess.PIPE, stderr=self._log, text=True,
    )  # fmt: skip
    self._all.append(process)
    return process

  def dispatcher(self):
    return self._start(
      'dispatcher', f'--port={self.port}', f'--work_dir={self._work_dir}'
    )

  def worker(self):
    return self._start(
      'worker', f'--dispatcher=localhost:{self.port}', '--host=localhost'
    )

  @staticmethod
  def wait_for(*processes):
    for process in processes:
      assert process.stdout.readline().endswith(' is up\n')

  def close(self):
    for process in self._all:
      process.kill()
      process.wait()
      process.stdout.close()
    self._log.close()


@pytest.fixture
def servers(tmp_path):
  made = Servers(tmp_path)
  yield made
  made.close()


def data(service=None, **options):
  source = tftrain.data.InMemory({'n': np.arange(1000)})
  return tftrain.data.Examples(source, _BATCH, service=service, **options)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_batches_stay_the_same_whoever_of_a_service_dies(servers):
  dispatcher, one, two = (
    servers.dispatcher(), servers.worker(), servers.worker()
  )  # fmt: skip
  servers.wait_for(dispatcher, one, two)
  step = 5
  found = iter(data(f'grpc://localhost:{servers.port}').dataset(3, step))
  expected = iter(data().dataset(3, step))

  def take(count):
    for _ in range(count):
      np.testing.assert_array_equal(next(found)['n'], next(expected)['n'])

  take(50)
  os.kill(one.pid, signal.SIGKILL)
  one.wait()
  take(1000)
  os.kill(dispatcher.pid, signal.SIGKILL)
  dispatcher.wait()
  take(100)
  servers.wait_for(servers.dispatcher())  # its port and work_dir are the same
  take(100)
  servers.wait_for(servers.worker())
  os.kill(two.pid, signal.SIGKILL)
  two.wait()
  take(300)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_training_goes_on_whoever_of_a_service_dies(servers):
  def trainer(service):
    keras.utils.set_random_seed(0)
    source = tftrain.data.InMemory(small_tasks.arrays())
    return tftrain.Trainer(
      small_tasks.supervised(keras.optimizers.Adam(0.01)),
      tftrain.data.Examples(source, _BATCH, service=service),
    )

  dispatcher, one, two = (
    servers.dispatcher(), servers.worker(), servers.worker()
  )  # fmt: skip
  servers.wait_for(dispatcher, one, two)
  run = trainer(f'grpc://localhost:{servers.port}')
  for step, victim in ((20, one), (500, dispatcher)):
    run.train(step)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
  run.train(520)
  servers.wait_for(servers.dispatcher())
  run.train(800)
  plain = trainer(None)
  plain.train(800)
  small_tasks.assert_same_bits(
    small_tasks.state_of(run), small_tasks.state_of(plain)
  )


@pytest.mark.parametrize('options', [{'training': False}, {'epochs': 3}])
def test_data_that_end_are_refused(options):
  with pytest.raises(
    errors.ConfigError, match=r"^Examples.service = 'grpc://a:1' with data that"
  ):
    data('grpc://a:1', **options)


@pytest.mark.slow
def test_a_dispatcher_without_a_worker_is_an_error_in_time(
  servers, monkeypatch
):
  monkeypatch.setattr(_data_service, '_WORKER_SECONDS', 1.0)
  servers.wait_for(servers.dispatcher())
  address = f'grpc://localhost:{servers.port}'
  with pytest.raises(errors.InputError) as raised:
    data(address)
  assert str(raised.value) == (
    f'the tf.data service at {address} has no worker that serves: no answer '
    'within 1 s; start one (python -m tftrain.data.data_service_server '
    'worker), and see '
    'that it can be reached from here'
  )
  servers.wait_for(servers.worker())
  data(address)


@pytest.mark.slow
@pytest.mark.parametrize('says', [b'', b'HTTP/1.1 400 Bad Request\r\n\r\n'])
def test_what_is_no_service_is_an_error_in_time(says, monkeypatch):
  monkeypatch.setattr(_data_service, '_SECONDS', 0.5)
  with contextlib.closing(socket.create_server(('localhost', 0))) as server:
    port = server.getsockname()[1]
    began = time.monotonic()
    if says:
      monkeypatch.setattr(
        socket.socket, 'recv', lambda self, n: says[:n], raising=False
      )
    with pytest.raises(errors.InputError) as raised:
      data(f'grpc://localhost:{port}')
  assert time.monotonic() - began < 60
  what = 'is no gRPC server' if says else 'timed out'
  assert str(raised.value).startswith(
    f'no tf.data service answers at grpc://localhost:{port} ('
  )
  assert what in str(raised.value)
