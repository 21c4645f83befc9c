"""The progress bar: one line on a terminal, plain lines elsewhere."""

import fcntl
import os
import pty
import re
import select
import struct
import termios

import pytest

from tests.support import small_tasks
import tftrain
from tftrain.summary import progress_bar


def test_progress_says_step_metrics_and_speed(capsys):
  trainer = tftrain.Trainer(
    small_tasks.supervised(),
    tftrain.Arrays(small_tasks.arrays(), 8),
    log_every=10,
  )
  trainer.train(20, [tftrain.summary.ProgressBar()])
  lines = capsys.readouterr().err.splitlines()
  lines = [line for line in lines if ' train ' in line]
  assert len(lines) == 2
  assert '20/20' in lines[1] and 'loss' in lines[1] and 'steps/s' in lines[1]


@pytest.fixture
def terminal():
  """(a stream that is a terminal, a function that reads what it shows)."""
  screen, keyboard = pty.openpty()
  size = struct.pack('HHHH', 24, 160, 0, 0)  # rows, columns
  fcntl.ioctl(keyboard, termios.TIOCSWINSZ, size)
  stream = os.fdopen(keyboard, 'w')

  def read():
    stream.flush()
    assert select.select([screen], [], [], 10)[0], 'nothing is shown'
    shown = b''
    while select.select([screen], [], [], 0.2)[0]:  # it comes in pieces
      shown += os.read(screen, 1 << 16)
    return shown.decode()

  yield stream, read
  stream.close()
  os.close(screen)


def report(step, source='train', **timing):
  return small_tasks.report(
    step,
    max(step - 100, 0),
    source=source,
    last_step=200,
    scalars={'loss': 0.25, 'accuracy': 0.5, 'gradient_norm': 3.0},
    timing=timing,
  )


def test_a_terminal_shows_one_line_that_is_written_over(terminal):
  stream, read = terminal
  show = tftrain.summary.ProgressBar(stream)
  show(report(100, steps_per_second=50.0, input_wait=0.41))
  first = read()
  assert '100/200' in first and 'loss 0.25' in first
  assert '50 steps/s  input 41%' in first
  assert 'gradient_norm' not in first
  assert '\n' not in first
  show(report(100, source='eval/test'))
  assert re.search(r'\d\d:\d\d:\d\d  eval/test .* loss 0.25', read())
  show(report(200, steps_per_second=50.0))
  assert re.search(r'\r200/200 .*\n', read().replace('\r\n', '\n'))


def test_elsewhere_each_report_is_a_line_with_the_time(capsys):
  show = tftrain.summary.ProgressBar()
  show(report(100, steps_per_second=50.0, input_wait=0.41))
  line = capsys.readouterr().err
  assert re.fullmatch(
    r'\d\d:\d\d:\d\d  train +100/200  loss 0.25  accuracy 0.5  50 steps/s'
    r'  input 41%  2 s left\n',
    line,
  )


def test_seconds_are_said_as_a_person_would():
  said = [progress_bar._duration(s) for s in (12.3, 600.0, 7200.0)]
  assert said == ['12 s', '10 min', '2.0 h']


def test_quiet_shows_nothing(tmp_path, capfd):
  recipe = tftrain.Experiment(
    small_tasks.supervised,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    steps=4,
    log_every=2,
    export=False,
  )
  recipe.prepare(tmp_path / 'a', quiet=True).train()
  assert 'loss' not in capfd.readouterr().err
  recipe.prepare(tmp_path / 'b').train()
  assert 'loss' in capfd.readouterr().err


def test_of_many_metrics_a_line_shows_some(capsys):
  scalars = {f'metric_{i}': float(i) for i in range(10_000)}
  progress_bar.ProgressBar()(small_tasks.report(1, scalars=scalars))
  line = capsys.readouterr().err
  assert 'metric_11 11  +9,988 more' in line and 'metric_12 ' not in line
