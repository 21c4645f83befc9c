"""Runs command lines in forked children, sparing each the imports.

Reads lines of JSON. {"argv": [...], "cwd": ..., "into": directory} starts a
child whose stdout and stderr become files in that directory, and is answered
with {"pid": ...}; {"wait": pid} is answered with {"code": ...} when the child
has ended, negative where a signal ended it. "uid" and "file_limit" (bytes) take
rights away from the child first; "environment" gives it variables.
"""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import json
import resource
import sys
import traceback

import sklearn.datasets  # noqa: F401
import tensorflow  # noqa: F401

from tests.support import fork_servers
from tftrain.config import loader  # noqa: F401
from tftrain.launch import command as command_lib


def child(argv, cwd, into, uid=None, file_limit=None, environment=None):
  fork_servers.die_with_parent()
  os.environ.update(environment or {})
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    os.dup2(os.open(f'{into}/{name}', os.O_WRONLY | os.O_CREAT), number)
  os.chdir(cwd)
  if file_limit is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
  if uid is not None:
    os.setuid(uid)
  sys.argv = argv
  code = 70
  try:
    code = command_lib.execute(argv)
  except BaseException:
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
  fork_servers.die_with_parent()
  for line in sys.stdin:
    command = json.loads(line)
    if 'wait' in command:
      _, status = os.waitpid(command['wait'], 0)
      answer = {'code': os.waitstatus_to_exitcode(status)}
    else:
      answer = {'pid': os.fork()}
      if answer['pid'] == 0:
        child(**command)
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
