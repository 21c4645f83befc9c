"""A target for sweeps: without TensorFlow, and with faults on request.

Macros say what: `LR` sets its accuracy, `STEPS` how many lines it writes, `DO`
what goes wrong.
"""

import ast
import json
import os
import pathlib
import signal
import sys
import time

from tftrain import errors
from tftrain.platform import jsonl
from tftrain.report import report as report_lib
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import results as results_lib
from tftrain.sweep import trial as trial_lib


def describe(sweep_dir):
  plan = plan_lib.read(pathlib.Path(sweep_dir))
  trials = [{'index': t.index, 'error': None, 'steps': 4} for t in plan.trials]
  names = ['train/loss', 'train/accuracy', 'eval/test/accuracy']
  print(json.dumps({'trials': trials, 'metrics': names, 'parameters': 10}))


def work(trial):
  base = (trial.plan.sweep_dir / 'base.gin').read_text().splitlines()
  values = {'LR': 0.5, 'STEPS': 4, 'DO': '', 'SLEEP': 0.0, 'Experiment.seed': 0}
  for line in [*base, *trial.bindings]:
    name, _, text = line.partition(' = ')
    values[name] = ast.literal_eval(text)
  path = trial.directory / 'metrics.jsonl'
  jsonl.cut_partial_line(path) if path.exists() else None
  for step in range(
    len(results_lib.lines(trial.directory)) + 1, values['STEPS'] + 1
  ):
    time.sleep(values['SLEEP'])
    fault(values['DO'], step)
    tag = 'loss' if values['DO'] == 'other metric' else 'accuracy'
    line = {'step': step, 'source': 'eval/test', tag: values['LR'] * step}
    jsonl.append_line(path, json.dumps(line))
    report = report_lib.Report(
      source='eval/test',
      step=step,
      previous_step=step - 1,
      start_step=0,
      last_step=values['STEPS'],
      scalars={'accuracy': values['LR'] * step},
    )
    for action in trial.actions():
      if action(report):
        return 0
  return 0


def fault(do, step):
  marks = {'hang': 1, 'obey': 1, 'sleep': 1, 'stop': 1, 'kill': 1, 'die': 2}
  if marks.get(do) == step:
    if do == 'hang':
      signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if do == 'obey':
      signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if do in ('hang', 'obey', 'sleep'):
      time.sleep(600)
    os.kill(os.getpid(), signal.SIGSTOP if do == 'stop' else signal.SIGKILL)
  if do == 'fail' and not os.path.exists(os.environ.get('MENDED', '')):
    raise errors.ConfigError(f'no such thing in {step} ways')
  if do == 'nan':
    raise errors.NonFiniteError('step 1: loss nan', step=1)


def main():
  given = dict(word.lstrip('-').split('=', 1) for word in sys.argv[1:])
  if given.get('mode') == 'describe':
    describe(given['sweep_dir'])
    return 0
  try:
    return trial_lib.run(given['sweep_dir'], int(given['trial_index']), work)
  except errors.Error as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code


if __name__ == '__main__':
  sys.exit(main())
