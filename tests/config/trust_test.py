"""Configurations that are data: nothing in them runs code."""

import sys

import pytest

from tests.support import gin_texts


def test_data_may_name_what_the_script_has_imported(tmp_path):
  import mine  # noqa: F401

  text = gin_texts.replaced('import mine\n', '')
  loaded = gin_texts.load(text, trust='data')
  assert loaded.experiment.steps == 4


_REFUSED = {
  'an import': (
    'import os\n' + gin_texts.GOOD,
    "a.gin:1: 'import os' runs code",
  ),
  'an import in an include': (
    "include 'b.gin'\n" + gin_texts.GOOD,
    "b.gin:1: 'import evil' runs code",
  ),
  'dynamic registration': (
    gin_texts.DYNAMIC,
    "a.gin:1: 'from __gin__ import dynamic_registration' runs code",
  ),
  'a name that nobody registered': (
    gin_texts.replaced('import mine\n', '').replace('mine.', 'their.'),
    "a.gin:6: 'their.make_task' is not among the names",
  ),
  'a generator': ('A = @Generator()\n', 'a.gin:1: Generator calls what'),
  'a data set with code': (
    'A = [(1, {1: @Tfds()})]\n',
    'a.gin:1: Tfds runs the',
  ),
  'a file anywhere': (
    "CsvWriter.path = '/etc/x'\n",
    'a.gin:1: CsvWriter writes to any path',
  ),
  'a machine elsewhere': (
    "Examples.service = 'grpc://there'\n",
    'a.gin:1: Examples.service sends the data',
  ),
  'what Keras would import': (
    "Adam.name = {'module': 'evil', 'class_name': 'A'}\n",
    "a.gin:1: a dict with the key 'module' may have Keras import",
  ),
  'what Keras would import, in disguise': (
    "K = 'module'\nAdam.name = {%K: 'evil', 'a': 1}\n",
    'a.gin:2: a dict with the key %K may have Keras import',
  ),
  'a maker of objects': (
    'A = @keras.optimizers.deserialize()\n',
    "a.gin:1: 'keras.optimizers.deserialize' is not among",
  ),
}


@pytest.mark.parametrize('what', _REFUSED)
def test_data_is_no_program(what, tmp_path):
  (tmp_path / 'evil.py').write_text('open("ran", "w").close()\n')
  (tmp_path / 'b.gin').write_text('import evil\n')
  text, start = _REFUSED[what]
  assert gin_texts.said(text, trust='data').startswith(start)
  assert not (tmp_path / 'ran').exists()
  assert 'evil' not in sys.modules


def test_a_binding_on_the_command_line_is_data_too():
  line = gin_texts.said('', '--gin_bindings=import os', trust='data')
  assert line.startswith("--gin_bindings: 'import os' runs code")
