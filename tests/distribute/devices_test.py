"""What TensorFlow is told of its devices, and how gradients are added up."""

import json

import keras
import pytest
import tensorflow as tf

from tests import cases
import tftrain
from tftrain import errors
from tftrain.distribute import all_reduce as all_reduce_lib
from tftrain.distribute import devices
from tftrain.distribute import strategy as strategy_lib
from tftrain.launch import _rerun
from tftrain.step import gradients as gradients_lib

_GIN = """
import tests.recipes
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


def collectives(bucket_mb):
  """How many each replica has for the gradients of three large kernels."""
  # TensorFlow's own choice, as on GPUs; it is only traced here.
  strategy = tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])
  all_reduce_lib.Reduction(bucket_mb=bucket_mb).put_on(strategy)

  @tf.function(autograph=False)
  def step(kernel):
    def reduce():
      packed = [kernel * i for i in range(3)]
      return gradients_lib._all_reduce(packed, kernel[0, 0], {})

    return strategy.run(reduce)

  definition = step.get_concrete_function(tf.zeros([400, 400])).graph
  nodes = [node.type for node in definition.get_operations()]
  return sum(node.startswith('CollectiveReduce') for node in nodes) // 2


def test_the_bucket_size_reaches_the_collectives():
  # Three kernels of 640 kB, and the vector of sums, which goes first.
  assert collectives(None) == 1
  assert collectives(100.0) == 1
  assert collectives(1.0) == 2  # a bucket holds that much at least
  assert collectives(0.1) == 3


@pytest.mark.slow
@pytest.mark.parametrize('all_reduce', ['auto', 'hierarchical'])
def test_an_algorithm_of_ones_own_changes_no_result(all_reduce):
  states = []
  for options in ({}, {'all_reduce': all_reduce, 'replicas': 2}):
    keras.utils.set_random_seed(3)
    strategy = strategy_lib.make_strategy('mirrored', **options)
    with strategy.scope():
      task = cases.supervised()
    data = tftrain.Arrays(cases.arrays(), 8)
    trainer = tftrain.Trainer(task, data, strategy=strategy)
    trainer.train(20)
    states.append(cases.state_of(trainer))
  assert all_reduce_lib.of(strategy).all_reduce == all_reduce
  cases.assert_close(*states, 1e-6)


def test_workers_are_given_the_implementation():
  given = tf.distribute.experimental.CommunicationImplementation
  for name, expected in (('ring', given.RING), ('nccl', given.NCCL)):
    options = all_reduce_lib.Reduction(name).communication()
    assert options.implementation == expected


def test_a_rerun_takes_them_from_the_command_line():
  argv = ['tftrain', '--deterministic', '--notf32', '--local_devices', '2']
  found = [
    _rerun._value(argv, name)
    for name in ('deterministic', 'tf32', 'local_devices', 'run_eagerly')
  ]
  assert found == ['True', 'False', '2', None]
