"""An export without Python: in C, and with TensorFlow's own tool."""

import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tools import saved_model_utils

from examples import digits
from tests.support import paths
import tftrain

_SERVING = paths.ROOT / 'examples' / 'serving'
_ENVIRONMENT = {
  **os.environ,
  'CUDA_VISIBLE_DEVICES': '',
  'TF_CPP_MIN_LOG_LEVEL': '3',
}
_CLI = 'tensorflow.python.tools.saved_model_cli'


def run(*command):
  """A finished process, whatever its exit code."""
  return subprocess.run(
    [str(word) for word in command],
    env=_ENVIRONMENT,
    capture_output=True,
    text=True,
    timeout=240,
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A task and its export."""
  model_dir = tmp_path_factory.mktemp('digits')
  keras.utils.set_random_seed(0)
  experiment = tftrain.Experiment(
    lambda: digits.make_task(lambda: keras.optimizers.Adam(0.01), filters=4),
    digits.train_data,
    steps=40,
    export=tftrain.actions.Export(fresh=False),
  ).prepare(model_dir)
  experiment.train()
  return experiment.trainer.task, model_dir / 'export' / '40'


@pytest.fixture(scope='module')
def images(trained):
  """Two held-out images `[2, 64]`, of different classes, none at an end."""
  task, _ = trained
  features, _ = digits.load('test')
  classes = np.argmax(task.model(features), 1)
  inner = np.flatnonzero((classes > 0) & (classes < 9))
  other = inner[classes[inner] != classes[inner[0]]]
  return features[[inner[0], other[0]]]


@pytest.fixture(scope='module')
def classify(tmp_path_factory):
  """The path of the C program, built as its README.md says."""
  for tool in ('gcc', 'make'):
    if shutil.which(tool) is None:
      pytest.skip(f'no {tool} on PATH: apt-get install gcc make')
  folder = tmp_path_factory.mktemp('classify') / 'serving'
  shutil.copytree(_SERVING, folder, ignore=shutil.ignore_patterns('classify'))
  built = run('make', '-C', folder, 'CC=gcc', f'PYTHON={sys.executable}')
  assert built.returncode == 0, built.stderr
  assert 'warning' not in built.stderr
  return folder / 'classify'


def assert_refused(result, message, code=1):
  """TensorFlow itself may log as it is loaded: lines before the last."""
  assert (result.returncode, result.stdout) == (code, '')
  *logged, last = result.stderr.splitlines()
  assert last == message
  assert not any(line.startswith(('error', 'usage')) for line in logged)


def save_text(path, numbers):
  np.savetxt(path, numbers, fmt='%.9g')
  return path


def assert_equal(outputs, expected):
  np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_c_gives_the_outputs_of_the_live_model(
  trained, images, classify, tmp_path
):
  task, export = trained
  signature = tf.saved_model.load(str(export)).signatures['serving_default']
  found = []
  for image in images:
    given = save_text(tmp_path / 'image.txt', image)
    result = run(classify, export, given)
    assert result.returncode == 0, result.stderr
    assert 'error: ' not in result.stderr
    first, second = result.stdout.splitlines()
    outputs = np.array(second.split(' '), 'float32')
    live = task.serve(image[None]).numpy()[0]
    assert_equal(outputs, live)
    assert_equal(outputs, signature(inputs=image[None])['outputs'][0])
    assert int(first) == np.argmax(live)
    found.append(first)
  assert found[0] != found[1]


@pytest.mark.slow
def test_c_takes_the_names_of_the_operations(
  trained, images, classify, tmp_path
):
  _, export = trained
  image = save_text(tmp_path / 'image.txt', images[0].reshape(8, 8))
  names = ['serving_default_inputs', 'StatefulPartitionedCall']
  result = run(classify, export, image, *names)
  assert result.returncode == 0, result.stderr
  assert result.stdout == run(classify, export, image).stdout
  for wrong in (['a', names[1]], [names[0], 'a']):
    result = run(classify, export, image, *wrong)
    assert_refused(result, 'error: a is no operation of the export')
  result = run(classify, export, image, names[0], 'NoOp')
  assert_refused(result, 'error: operation NoOp does not give float32')


@pytest.mark.parametrize('arguments', [[], ['a'], ['a', 'b', 'c', 'd', 'e']])
def test_c_says_its_usage(classify, arguments):
  result = run(classify, *arguments)
  usage = f'usage: {classify} EXPORT_DIR IMAGE_FILE [INPUT [OUTPUT]]'
  assert_refused(result, usage, code=2)


def test_c_says_in_one_line_that_there_is_no_export(classify, tmp_path):
  image = save_text(tmp_path / 'image.txt', np.zeros(64))
  nowhere = tmp_path / 'nowhere'
  result = run(classify, nowhere, image)
  assert_refused(
    result,
    f'error: {nowhere}: Could not find SavedModel .pb or .pbtxt at supplied '
    f'export directory path: {nowhere}. Check that the directory exists and '
    'that you have the right permissions for accessing it.',
  )


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'FILE cannot be opened'),
    ('', 'FILE has 0 numbers; the export takes 64'),
    ('1 ' * 63, 'FILE has 63 numbers; the export takes 64'),
    ('1\n' * 6500, 'FILE has 6500 numbers; the export takes 64'),
    ('1,' * 64, 'FILE has other things than numbers'),
    ('1 ' * 64 + 'x', 'FILE has other things than numbers'),
  ],
)
def test_c_says_in_one_line_what_is_wrong_with_an_image(
  trained, classify, tmp_path, text, message
):
  image = tmp_path / 'image.txt'
  if text is not None:
    image.write_text(text)
  result = run(classify, trained[1], image)
  assert_refused(result, f'error: {message.replace("FILE", str(image))}')


def test_c_refuses_a_directory_for_an_image(trained, classify, tmp_path):
  result = run(classify, trained[1], tmp_path)
  assert_refused(result, f'error: {tmp_path} cannot be read')


def test_make_says_that_a_python_has_no_tensorflow(tmp_path):
  if shutil.which('make') is None:
    pytest.skip('no make on PATH: apt-get install make')
  # Neither site-packages nor the environment: an empty installation.
  python = tmp_path / 'python'
  python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
  python.chmod(0o755)
  shutil.copy(_SERVING / 'Makefile', tmp_path)
  (tmp_path / 'classify.c').touch()
  result = run('make', '-C', tmp_path, f'PYTHON={python}')
  assert result.returncode == 2
  assert f'{python} has no tensorflow' in result.stderr


@pytest.mark.slow
def test_saved_model_cli_gives_the_outputs_of_the_live_model(
  trained, images, tmp_path
):
  task, export = trained
  np.save(tmp_path / 'images.npy', images)
  chosen = ('--dir', export, '--tag_set=serve')
  result = run(
    *(sys.executable, '-m', _CLI, 'run', *chosen),
    '--signature_def=serving_default',
    f'--inputs=inputs={tmp_path / "images.npy"}',
    f'--outdir={tmp_path / "out"}',
  )
  assert result.returncode == 0, result.stderr
  outputs = np.load(tmp_path / 'out' / 'outputs.npy')
  assert_equal(outputs, task.serve(images))


def test_the_signature_has_the_names_that_c_takes_by_default(trained):
  """What `saved_model_cli show` prints; without a process of its own."""
  _, export = trained
  (graph,) = saved_model_utils.read_saved_model(str(export)).meta_graphs
  signature = graph.signature_def['serving_default']
  assert {k: v.name for k, v in signature.inputs.items()} == {
    'inputs': 'serving_default_inputs:0'
  }
  assert {k: v.name for k, v in signature.outputs.items()} == {
    'outputs': 'StatefulPartitionedCall:0'
  }
