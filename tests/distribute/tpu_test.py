"""TPUs that do not answer: one line after the deadline."""

import os
import socket
import subprocess
import sys
import time

import pytest

from tests.support import worker_processes


@pytest.mark.parametrize(
  'answers', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_a_tpu_that_says_nothing_is_one_line(commands, tmp_path, answers):
  with socket.create_server(('127.0.0.1', 0)) as silent:
    port = silent.getsockname()[1]
    if not answers:
      silent.close()
    began = time.monotonic()
    ended = worker_processes.alone(
      commands, tmp_path, '--strategy=tpu',
      environment={
        'TPU_NAME': f'grpc://127.0.0.1:{port}', 'TFTRAIN_TPU_DEADLINE': '1',
      },
    )  # fmt: skip
  assert time.monotonic() - began < 60
  assert ended.code == 2
  assert ended.error.startswith(
    f'the TPU grpc://127.0.0.1:{port} cannot be reached: no answer within 1 s'
  )


@pytest.mark.slow
def test_a_process_that_waits_for_a_tpu_really_ends(tmp_path):
  (tmp_path / 'a.gin').write_text(worker_processes.GIN)
  with socket.create_server(('127.0.0.1', 0)) as silent:
    ended = subprocess.run(
      [
        sys.executable, '-m', 'tftrain', f'--gin_file={tmp_path}/a.gin',
        f'--model_dir={tmp_path}/run', '--strategy=tpu',
      ],
      env={
        **os.environ, 'TFTRAIN_TPU_DEADLINE': '3',
        'TPU_NAME': f'grpc://127.0.0.1:{silent.getsockname()[1]}',
      },
      stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
  assert ended.returncode == 2  # and no crash of the thread that still waits
  assert ended.stderr.splitlines()[-1].startswith('error: the TPU grpc://')
