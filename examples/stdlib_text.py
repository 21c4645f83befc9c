"""Real text that is always there: the sources of Python's standard library.

One character is one token: its ASCII code. What is not ASCII becomes `?`.
"""

import os
import pathlib

import numpy as np

CODES = 128

# Whole modules are held out, so that nothing of them is seen in training.
MODULES = {
  'train': 'argparse ast configparser difflib doctest functools inspect '
  'optparse pickle shutil subprocess tarfile threading tokenize typing',
  'test': 'heapq shlex textwrap',
}


def read(split: str) -> str:
  """The text of all modules of a split, one after the other."""
  folder = pathlib.Path(os.__file__).parent
  names = MODULES[split].split()
  return ''.join((folder / f'{name}.py').read_text('utf-8') for name in names)


def encode(text: str) -> np.ndarray:
  codes = np.frombuffer(text.encode('ascii', 'replace'), np.uint8)
  return codes.astype('int32')


def decode(codes: np.ndarray) -> str:
  return bytes(codes.astype('uint8')).decode('ascii')


def windows(split: str, length: int) -> np.ndarray:
  """Pieces of running text, int32 `[pieces, length]`."""
  codes = encode(read(split))
  return codes[: len(codes) // length * length].reshape(-1, length)


def lines(split: str, length: int) -> np.ndarray:
  r"""Lines, int32 `[lines, length]`: `\n`, the characters, `\n`, zeros.

  Empty lines are left out, longer ones cut.
  """
  found = [line for line in read(split).splitlines() if line.strip()]
  rows = np.zeros((len(found), length), 'int32')
  for row, line in zip(rows, found, strict=True):
    codes = encode(f'\n{line}\n')[:length]
    row[: len(codes)] = codes
  return rows
