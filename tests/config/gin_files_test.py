"""Gin files: found beside each other and in the search paths."""

import pathlib

import gin
import pytest

from tests.support import gin_texts
from tftrain import errors
from tftrain.config import loader


def test_a_file_that_is_not_there_has_close_matches():
  gin_texts.load(gin_texts.GOOD)
  gin.clear_config()
  with pytest.raises(errors.ConfigError) as raised:
    loader.load(['aa.gin'])
  line = str(raised.value)
  assert line.startswith("--gin_file: no file 'aa.gin' in ")
  assert line.endswith(
    'did you mean ' + str(pathlib.Path.cwd() / 'a.gin') + '?'
  )


def test_includes_are_looked_for_beside_the_file_then_in_the_search_paths():
  for folder, rate in (('one', 0.1), ('two', 0.2)):
    pathlib.Path(folder).mkdir()
    pathlib.Path(folder, 'rate.gin').write_text(f'RATE = {rate}\n')
  pathlib.Path('two', 'seed.gin').write_text('eval/mine.points.seed = 5\n')
  text = gin_texts.replaced(
    'RATE = 0.01', "include 'rate.gin'\ninclude 'seed.gin'"
  )
  text = text.replace('  seed = 1\n', '')
  pathlib.Path('one', 'b.gin').write_text(text)
  # The package's own come last.
  pathlib.Path('one', 'c.gin').write_text("include 'optimizers/adam.gin'\n")
  loader.load(['one/b.gin'], search_paths=['two'])
  assert gin.query_parameter('%RATE') == 0.1
  assert gin.query_parameter('eval/mine.points.seed') == 5
  with pytest.raises(errors.ConfigError, match='nothing reads the macro'):
    gin.clear_config()
    loader.load(['one/c.gin', 'one/b.gin'], search_paths=['two'])
