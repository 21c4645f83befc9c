"""Device flags: set early, recorded, and refused in one line."""

import json

import pytest
import tensorflow as tf

from tftrain import errors
from tftrain.distribute import all_reduce as all_reduce_lib
from tftrain.distribute import devices
from tftrain.launch import _rerun

_GIN = """
import tests.support.recipes
Experiment.task = @recipes.make_task
Experiment.train_data = @recipes.train_data
Experiment.steps = 3
Experiment.export = False
"""


def run(commands, directory, *flags):
  (directory / 'a.gin').write_text(_GIN)
  return commands.run(
    f'--gin_file={directory}/a.gin', f'--model_dir={directory}/run', *flags
  )


def test_flags_are_set_before_tensorflow_starts_and_recorded(
  commands, tmp_path
):
  flags = (
    '--memory_growth', '--notf32', '--deterministic', '--gpu_threads=3',
    '--inter_op_threads=2', '--intra_op_threads=1', '--local_devices=2',
    '--strategy=mirrored', '--bucket_mb=2.5',
  )  # fmt: skip
  ended = run(commands, tmp_path, *flags)
  assert ended.code == 0, ended.stderr
  (life,) = json.loads((tmp_path / 'run' / 'run.json').read_text())['attempts']
  assert life['devices'] == {  # no GPU's memory can grow here
    'tf32_off': True,
    'deterministic': True,
    'gpu_threads': 3,
    'inter_op_threads': 2,
    'intra_op_threads': 1,
    'bucket_mb': 2.5,
  }


@pytest.mark.slow
def test_a_check_takes_them_and_repeats_have_the_same_bits(commands, tmp_path):
  lines = []
  for name in ('a', 'b'):
    (tmp_path / name).mkdir()
    ended = run(commands, tmp_path / name, '--deterministic')
    assert ended.code == 0, ended.stderr
    lines.append((tmp_path / name / 'run' / 'metrics.jsonl').read_bytes())
  assert lines[0] == lines[1]
  ended = run(commands, tmp_path, '--mode=check', '--deterministic')
  assert ended.code == 0, ended.stdout


def test_what_comes_too_late_is_one_line():
  tf.zeros([])  # starts it
  late = devices.Devices(tf32=False, intra_op_threads=1)
  with pytest.raises(errors.StrategyError) as raised:
    late.set_up()
  assert str(raised.value) == (
    'tf32=False, intra_op_threads=1 comes too late: TensorFlow has started; '
    'set it before anything else of TensorFlow is used'
  )
  devices.Devices().set_up()  # asks for nothing
  assert devices.facts(tf.distribute.get_strategy()) == {}


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--all_reduce=nccl', '--strategy=mirrored'], "'nccl' needs GPUs"),
    (
      ['--all_reduce=hierarchical', '--strategy=mirrored'],
      'needs 2 devices, there is 1',
    ),
    (
      ['--all_reduce=nccl', '--workers=a:1,b:2', '--task_index=0'],
      "'nccl' needs GPUs",
    ),
  ],
)
def test_what_cannot_be_had_is_one_line(commands, tmp_path, flags, message):
  ended = run(commands, tmp_path, *flags)
  assert ended.code == 2
  assert message in ended.error
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('given', 'strategy', 'message'),
  [
    (('ring', None), 'mirrored', "'mirrored'; use auto or nccl or hier"),
    (('nccl', None), 'one_device', "'one_device'; use auto"),
    (('nccl', None), 'tpu', "cannot be had with strategy 'tpu'; use auto"),
    (('hierarchical', None), 'multi_worker_mirrored', 'use auto or nccl or ri'),
    (('hierarchical', 2.0), 'mirrored', 'bucket_mb=2 has no effect'),
    (('tree', None), 'mirrored', "all_reduce 'tree' is none; choose one of"),
    (('auto', 0.0), 'mirrored', 'bucket_mb must be more than 0, got 0.0'),
  ],
)
def test_what_does_not_go_together_is_one_line(given, strategy, message):
  with pytest.raises(errors.StrategyError) as raised:
    all_reduce_lib.Reduction(*given).check(strategy, gpus=2, devices=2)
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)


def test_a_rerun_takes_them_from_the_command_line():
  argv = ['tftrain', '--deterministic', '--notf32', '--local_devices', '2']
  found = [
    _rerun._value(argv, name)
    for name in ('deterministic', 'tf32', 'local_devices', 'run_eagerly')
  ]
  assert found == ['True', 'False', '2', None]
