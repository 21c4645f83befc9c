"""Inspects, checks and repairs TFRecord files.

python -m tftrain.data inspect '/data/train-*'
python -m tftrain.data check '/data/train-*'
python -m tftrain.data repair '/data/train-*' --to /data/repaired
"""

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import file_source
from tftrain.data.sources import tfrecord
from tftrain.data.sources import tfrecord_io
from tftrain.platform import files

_SHOWN = 70


def main(arguments: Sequence[str]) -> int:
  """Returns 0, 1 if a file is damaged, 2 if the arguments are invalid."""
  parser = argparse.ArgumentParser(
    prog='python -m tftrain.data', description=__doc__.partition('\n')[0]
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name, explanation in (
    ('inspect', 'shows what is in the first record of each file'),
    ('check', 'reads all records and compares their checksums'),
    ('repair', 'writes what is intact to another directory'),
  ):
    command = commands.add_parser(name, help=explanation)
    command.add_argument('paths', nargs='+', help='files or globs')
    if name == 'repair':
      command.add_argument('--to', required=True, help='that directory')
  given = parser.parse_args(arguments)
  try:
    paths = file_source.find(given.paths)
    if given.command == 'inspect':
      return _inspect(paths)
    if given.command == 'check':
      return _check_files(paths)
    return _repair(paths, pathlib.Path(given.to))
  except errors.Error as error:
    print(error, file=sys.stderr)
    return error.exit_code


def _inspect(paths: Sequence[str]) -> int:
  damaged = False
  for path in paths:
    content = tfrecord_io.count(path)
    damaged |= bool(content.damages)
    print(f'{path}: {_summary(content)}')
    record = next(tfrecord.intact(path, content.compression), None)
    if record is None:
      continue
    for name, (kind, values) in (tfrecord.values_of(record) or {}).items():
      shown = repr(list(values[:8]))
      if len(shown) > _SHOWN:
        shown = f'{shown[:_SHOWN]}...'
      print(f'  {name}: {kind} of {len(values)}: {shown}')
  return int(damaged)


def _check_files(paths: Sequence[str]) -> int:
  damaged = 0
  for path in paths:
    content = tfrecord_io.check(path)
    print(f'{path}: {_summary(content)}')
    damaged += bool(content.damages)
  print(f'{damaged} of {len(paths)} files are damaged')
  return int(damaged > 0)


def _repair(paths: Sequence[str], directory: pathlib.Path) -> int:
  files.make_directory(directory)
  for path in paths:
    if os.path.abspath(os.path.dirname(path)) == os.path.abspath(directory):
      raise errors.InputError(
        f'{directory} is where {path} lies; repair writes to another directory'
      )
  with files.staged_files(directory) as staged:
    for path in paths:
      content = tfrecord_io.repair(path, str(staged / os.path.basename(path)))
      print(f'{path}: {_summary(content)}')
  print(f'What is intact is in {directory}')
  return 0


def _summary(content: tfrecord_io.Content) -> str:
  kind = f', {content.compression}' if content.compression else ''
  if not content.damages:
    return f'{content.records} records{kind}'
  lines = [f'{content.records} intact records{kind}; damaged:']
  for damage in content.damages:
    tail = ', and all after it is lost' if damage.tail else ''
    lines.append(f'  {damage}{tail}')
  return '\n'.join(lines)


if __name__ == '__main__':
  tf.get_logger().setLevel('ERROR')
  sys.exit(main(sys.argv[1:]))
