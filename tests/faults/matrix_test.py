"""docs/reliability.md names tests that exist; every fault test is named there.

The tests that kill are no proof if nobody can find them, nor is a table. And
each of them has a guard that mutations.py can take away.
"""

import ast
import pathlib
import re

from tests.faults import guards
from tests.support import paths

_PAGE = (paths.ROOT / 'docs' / 'reliability.md').read_text(encoding='utf-8')
_NAMED = re.findall(r'`(tests/[\w/]+\.py)::(test_\w+)`', _PAGE)

# They support the rows of others, or show that a test can fail.
_UNNAMED = frozenset(
  """
  test_a_directory_that_cannot_be_made_is_refused
  test_a_disk_that_fills_up_within_a_line_keeps_none_of_it
  test_a_line_that_cannot_be_appended_leaves_no_trace
  test_a_power_cut_can_lose_one_that_is_not_durable
  test_a_power_cut_does_not_lose_the_first_durable_checkpoint
  test_a_sample_of_the_kills_of_a_save
  test_a_staged_directory_comes_whole_or_not_at_all
  test_a_text_that_cannot_be_written_is_the_old_one
  test_death_leaves_a_text_old_or_new
  test_death_leaves_files_that_move_together_old_or_new
  test_records_train
  test_death_while_tidying_loses_nothing_of_the_user
  test_the_same_checkpointer_goes_on_after_a_failure
  test_what_cannot_be_tidied_now_is_tidied_later
  """.split()
)


def _tests_in(path):
  tree = ast.parse(path.read_text(encoding='utf-8'))
  functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
  return {f.name for f in functions if f.name.startswith('test_')}


def test_each_row_names_a_test_that_exists():
  assert len(_NAMED) > 20
  missing = [
    f'{path}::{name}'
    for path, name in _NAMED
    if name not in _tests_in(paths.ROOT / path)
  ]
  assert not missing


def test_each_fault_test_has_a_row():
  here = pathlib.Path(__file__)
  paths = [p for p in here.parent.glob('*_test.py') if p != here]
  found = {name for path in paths for name in _tests_in(path)}
  named = {name for _, name in _NAMED}
  assert found - named == _UNNAMED


def test_each_row_has_a_guard():
  guarded = {guard.function for guard in guards.GUARDS}
  assert {f'{path}::{name}' for path, name in _NAMED} - guarded == set()


def test_each_guard_stands_where_it_is_said_to_stand():
  for guard in guards.GUARDS:
    source = (paths.ROOT / 'tftrain' / guard.file).read_text(encoding='utf-8')
    assert source.count(guard.old) == 1, guard
    assert guard.old != guard.new


def test_each_guard_has_a_test():
  for guard in guards.GUARDS:
    path, _, name = guard.function.partition('::')
    assert name in _tests_in(paths.ROOT / path), guard
