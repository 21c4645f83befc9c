"""Profiler: a trace of exactly its steps, and the table made of it."""

import time

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tests.support import recorded_runs
from tests.support import small_tasks
import tftrain
from tftrain.actions import profiler
from tftrain.checkpoint import format


def trace_of(run):
  (path,) = run.glob('train/plugins/profile/*/*.xplane.pb')
  return profiler._planes(path)


expm = tf.function(tf.linalg.expm)


def note():
  expm(tf.eye(2))


def count_of(run, kind):
  found = profiler.operations(trace_of(run))
  return sum(o.runs for o in found if o.kind == kind)


@pytest.mark.slow
def test_a_profile_is_of_exactly_its_steps(tmp_path, capsys):
  # At 3 and 6 there are evaluations and saves, which are not to be in it.
  others = [
    recorded_runs.At(3, note),
    tftrain.actions.Profiler(4, 6),
    recorded_runs.At(6, note),
  ]
  recorded_runs.experiment(actions=others, steps=9).train(tmp_path / 'run')
  run = tmp_path / 'run'
  assert count_of(run, 'SparseSoftmaxCrossEntropyWithLogits') == 3
  assert count_of(run, 'MatrixSolve') == 0
  text = (run / 'profile-4-6.txt').read_text()
  assert text in capsys.readouterr().out
  title, head, *rows = text.splitlines()
  assert title == 'Steps 4 to 6, the costliest operations:'
  assert head.split() == ['ms/step', 'share', 'runs', 'operation']
  assert len(rows) == 10
  events = b''.join(p.read_bytes() for p in (run / 'train').glob('events*'))
  assert b'profile-4-6.txt' in events


def test_a_save_is_waited_for_before_the_trace_begins(tmp_path, monkeypatch):
  write, start = format.write_checkpoint, tf.profiler.experimental.start
  run = recorded_runs.experiment(
    actions=[tftrain.actions.Profiler(4, 5)]
  ).prepare(tmp_path / 'run')
  writing = []

  def slowly(*given):
    time.sleep(0.3)
    write(*given)

  def begin(directory):
    writing.append(run.checkpointer.is_writing)
    start(directory)

  # The save of step 3 comes before the trace, which begins last.
  monkeypatch.setattr(format, 'write_checkpoint', slowly)
  monkeypatch.setattr(tf.profiler.experimental, 'start', begin)
  run.train()
  assert writing == [False]


def test_what_happens_between_the_profiled_steps_is_in_the_trace(tmp_path):
  others = [recorded_runs.At(5, note), tftrain.actions.Profiler(4, 6)]
  recorded_runs.experiment(actions=others, steps=7).train(tmp_path / 'run')
  assert count_of(tmp_path / 'run', 'MatrixSolve') > 0


def space(*events, device='/host:CPU', line='tf_Compute'):
  """A plane with one line of events (name, begin, duration)."""
  plane = xplane_pb2.XPlane(name=device)
  made = plane.lines.add(name=line)
  for number, (name, begin, duration) in enumerate(events, 1):
    plane.event_metadata[number].name = name
    made.events.add(metadata_id=number, offset_ps=begin, duration_ps=duration)
  return plane


def test_the_time_of_an_operation_is_without_those_inside_it():
  plane = space(
    ('ExecutorState::Process', 0, 10**12),
    ('a/While:While', 0, 6 * 10**9),
    ('a/MatMul:MatMul', 10**9, 3 * 10**9),
    ('a/Add:AddV2', 4 * 10**9, 10**9),
    ('b/MatMul:MatMul', 8 * 10**9, 10**9),
  )
  gpu = space(('gemm', 0, 4 * 10**9), device='/device:GPU:0', line='Stream 1')
  sums = space(('1', 0, 10**12), device='/device:GPU:0', line='Steps')
  found = profiler.operations([plane, gpu, sums])
  assert [(o.name, o.kind, o.runs) for o in found] == [
    ('gemm', 'GPU:0', 1),
    ('a/MatMul', 'MatMul', 1),
    ('a/While', 'While', 1),
    ('a/Add', 'AddV2', 1),
    ('b/MatMul', 'MatMul', 1),
  ]
  assert [round(o.seconds * 1e3, 6) for o in found] == [4, 3, 2, 1, 1]
  assert profiler.table(found, 2).splitlines()[1] == (
    '     2.000  36.4%       1  GPU:0  gemm'
  )


@pytest.mark.parametrize('steps', ['1:3', '3:2', 'a:b', '3', '2:9', '-1:4'])
def test_a_bad_range_is_refused_before_step_1(commands, tmp_path, steps):
  path = tmp_path / 'recipe.gin'
  path.write_text(recorded_runs.GIN)
  asked = [f'--gin_file={path}', f'--model_dir={tmp_path / "run"}']
  ended = commands.run(*asked, f'--profile_steps={steps}')
  assert ended.code == 2 and steps in ended.error
  assert not (tmp_path / 'run').exists()


def test_profile_steps_is_no_part_of_the_configuration(commands, tmp_path):
  old = recorded_runs.first_run(commands, tmp_path, '--profile_steps=2:3')
  assert 'Profiler' not in (old / 'config.gin').read_text()
  assert (old / 'profile-2-3.txt').exists()


def test_another_profiler_is_said_in_a_line(tmp_path, caplog):
  tf.profiler.experimental.start(str(tmp_path / 'other'))
  try:
    result = recorded_runs.experiment(
      actions=[tftrain.actions.Profiler(2, 3)]
    ).train(tmp_path / 'run')
  finally:
    tf.profiler.experimental.stop(save=False)
  assert result.step == 6
  said = [r for r in caplog.messages if 'have no profile' in r]
  assert said == ['Steps 2 to 3 have no profile: Another profiler is running..']


def test_a_run_resumed_behind_the_steps_has_no_profile(tmp_path, caplog):
  recorded_runs.experiment(steps=3).train(tmp_path / 'run')
  profile = [tftrain.actions.Profiler(2, 5)]
  recorded_runs.experiment(actions=profile).train(tmp_path / 'run')
  assert 'the run is at step 4 already' in caplog.text
  assert not list((tmp_path / 'run').glob('profile*'))


def test_a_stop_while_tracing_frees_the_profiler(tmp_path, caplog):
  run = recorded_runs.experiment(
    actions=[tftrain.actions.Profiler(2, 5)]
  ).prepare(tmp_path / 'run')
  profile = next(
    a for a in run._actions if isinstance(a, tftrain.actions.Profiler)
  )
  profile(small_tasks.report(1, last_step=6))
  assert profile.place < 0
  profile(small_tasks.report(3, last_step=6, stopping=True))
  assert 'the run was stopped, or went back, at step 3' in caplog.text
  assert profile.next_due(3) is None
  assert not list((tmp_path / 'run').glob('profile*'))
  tf.profiler.experimental.start(str(tmp_path / 'free'))
  tf.profiler.experimental.stop(save=False)
