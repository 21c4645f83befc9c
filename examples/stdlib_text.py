"""Text data that needs no download: sources of Python's standard library.

One character is one token: its ASCII code. Non-ASCII characters become `?`.
"""

import os
import pathlib

import numpy as np

CODES = 128

# Whole modules are held out, so that training sees no part of them.
MODULES = {
  'train': 'argparse ast configparser difflib doctest functools inspect '
  'optparse pickle shutil subprocess tarfile threading tokenize typing',
  'test': 'heapq shlex textwrap',
}


def read(split: str) -> str:
  """Returns the concatenated text of all modules of a split."""
  folder = pathlib.Path(os.__file__).parent
  names = MODULES[split].split()
  return ''.join((folder / f'{name}.py').read_text('utf-8') for name in names)


def encode(text: str) -> np.ndarray:
  codes = np.frombuffer(text.encode('ascii', 'replace'), np.uint8)
  return codes.astype('int32')


def decode(codes: np.ndarray) -> str:
  return bytes(codes.astype('uint8')).decode('ascii')


def windows(split: str, length: int) -> np.ndarray:
  """Returns consecutive windows of the text, int32 `[windows, length]`."""
  codes = encode(read(split))
  return codes[: len(codes) // length * length].reshape(-1, length)


def lines(split: str, length: int) -> np.ndarray:
  r"""Returns lines, int32 `[lines, length]`: `\n`, characters, `\n`, zeros.

  Empty lines are dropped, longer ones truncated.
  """
  found = [line for line in read(split).splitlines() if line.strip()]
  rows = np.zeros((len(found), length), 'int32')
  for row, line in zip(rows, found, strict=True):
    codes = encode(f'\n{line}\n')[:length]
    row[: len(codes)] = codes
  return rows
