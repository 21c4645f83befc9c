"""JSON lines: the resumable log, its reader, and partial lines."""

import json
import math

import pytest

from tftrain.platform import jsonl


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path):
  whole = jsonl.ResumableLog(tmp_path / 'whole.jsonl')
  killed = jsonl.ResumableLog(tmp_path / 'killed.jsonl')
  lines = [{'step': step, 'loss': 1 / step} for step in range(1, 9)]
  for line in lines:
    whole.append(line)
  for line in lines[:6]:
    killed.append(line)
  with killed.path.open('a') as file:
    file.write('{"step": 7, "lo')
  resumed = jsonl.ResumableLog(killed.path)
  assert resumed.resume(4) == {(1,), (2,), (3,), (4,)}
  for line in lines[2:]:
    assert resumed.append(line) == (line['step'] > 4)
  assert killed.path.read_bytes() == whole.path.read_bytes()


def test_a_log_without_a_file_resumes_empty(tmp_path):
  log = jsonl.ResumableLog(tmp_path / 'none.jsonl', ('step', 'source'))
  assert log.resume(3) == set() and not log.path.exists()
  assert not log.holds(1, 'train')
  assert log.append({'step': 1, 'source': 'train'})
  assert log.holds(1, 'train') and not log.holds(1, 'eval/test')


@pytest.mark.parametrize(
  'bad', ['', '{"step": 3', '[1]', '{"loss": 1}', '{"step": "x"}', 'null', '7']
)
def test_lines_without_a_step_are_not_read(tmp_path, bad):
  path = tmp_path / 'a.jsonl'
  path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
  assert jsonl.read(path) == [{'step': 1}, {'step': 2}]


def test_json_is_strict():
  text = jsonl.to_json({'a': math.nan, 'b': -math.inf, 'c': 1.5, 'd': None})
  assert json.loads(text) == {'a': 'nan', 'b': '-inf', 'c': 1.5, 'd': None}


@pytest.mark.parametrize(
  ('content', 'count', 'kept'),
  [(b'', 0, b''), (b'a\nb\n', 2, b'a\nb\n'), (b'a\nb', 1, b'a\n'),
   (b'abc', 0, b'')],
)  # fmt: skip
def test_a_partial_line_is_cut(tmp_path, content, count, kept):
  path = tmp_path / 'rows'
  path.write_bytes(content)
  assert jsonl.cut_partial_line(path) == count
  assert path.read_bytes() == kept
