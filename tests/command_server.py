"""Runs command lines in forked children, sparing each the imports.

Reads lines of JSON {"argv": [...], "cwd": ...}; answers each with a line of
JSON {"code": ..., "stdout": ..., "stderr": ...}.
"""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import json
import pathlib
import sys
import tempfile
import traceback

import sklearn.datasets  # noqa: F401
import tensorflow  # noqa: F401

from tftrain import config  # noqa: F401
from tftrain import launch


def child(argv, cwd, directory):
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    os.dup2(os.open(f'{directory}/{name}', os.O_WRONLY | os.O_CREAT), number)
  os.chdir(cwd)
  sys.argv = argv
  code = 70
  try:
    code = launch.run(argv)
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
  for line in sys.stdin:
    command = json.loads(line)
    with tempfile.TemporaryDirectory() as directory:
      pid = os.fork()
      if pid == 0:
        child(command['argv'], command['cwd'], directory)
      _, status = os.waitpid(pid, 0)
      answer = {
        name: pathlib.Path(directory, name).read_text()
        for name in ('stdout', 'stderr')
      }
    answer['code'] = os.waitstatus_to_exitcode(status)
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
