"""The command: `python -m tftrain`."""

import pathlib
import sys

if __name__ == '__main__':
  # Bazel runs this file as a script, with its directory first on the path:
  # there `platform` is a room of ours, not the module of Python.
  here = pathlib.Path(__file__).parent
  sys.path[:] = [p for p in sys.path if pathlib.Path(p).absolute() != here]
  from tftrain.launch import command

  command.main()
