"""tftrain-sweep: plans, runs and reports a sweep, on one machine or several.

tftrain-sweep plan --sweep=lr.gin --sweep_dir=/runs/lr -- python -m tftrain
tftrain-sweep run --sweep_dir=/runs/lr --parallel=2
tftrain-sweep worker --sweep_dir=/runs/lr
tftrain-sweep status --sweep_dir=/runs/lr
tftrain-sweep report --sweep_dir=/runs/lr

The same command resumes. Exit codes: 0 done, 1 a trial failed, 2 wrong
configuration or directory, 130 SIGINT, 143 SIGTERM.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from tftrain import errors
from tftrain.platform import files
from tftrain.platform import lock
from tftrain.platform import resource_slots
from tftrain.sweep import _terminal_table
from tftrain.sweep import plan as plan_lib
from tftrain.sweep import planner
from tftrain.sweep import report_files
from tftrain.sweep import results as results_lib
from tftrain.sweep import scheduler


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs a command; returns the exit code."""
  given = list(sys.argv[1:] if arguments is None else arguments)
  target: list[str] = []
  if '--' in given:
    cut = given.index('--')
    given, target = given[:cut], given[cut + 1 :]
  options = _make_parser().parse_args(given)
  try:
    sweep_dir = files.run_directory(options.sweep_dir)
    if options.command == 'plan':
      return _plan(options, sweep_dir, target)
    if target:
      raise errors.ConfigError(
        f'{target[0]!r} after -- belongs to tftrain-sweep plan; the command is '
        'in the plan already'
      )
    plan = plan_lib.read(sweep_dir)
    if options.command == 'status':
      return _status(plan)
    if options.command == 'report':
      for line in report_files.write(plan):
        print(line)
      return 0
    if options.command == 'worker':
      return _run(plan, options)
    with lock.lock(sweep_dir, 'sweep_dir'):
      retried = scheduler.retry(plan, options.retry or [])
      if retried:
        print(f'Again: {retried} trials.')
      return _run(plan, options)
  except errors.Error as error:
    print(f'error: {error}', file=sys.stderr)
    return error.exit_code


def _make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='tftrain-sweep',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  commands = parser.add_subparsers(dest='command', required=True)
  for name, explanation in (
    ('plan', 'checks all trials and writes the plan; the target follows --'),
    ('run', 'runs the trials on this machine'),
    ('worker', 'the same, beside others that share the directory'),
    ('status', 'says how far it is'),
    ('report', 'ranks the trials: results.csv, .md, .html; at any time'),
  ):
    command = commands.add_parser(name, help=explanation, allow_abbrev=False)
    command.add_argument('--sweep_dir', required=True, help='its directory')
    if name == 'plan':
      command.add_argument('--sweep', required=True, help='the gin file')
      command.add_argument(
        '--gin_search_paths',
        action='append',
        default=[],
        help='where to look for gin files and modules',
      )
    if name in ('run', 'worker'):
      _add_engine(command)
    if name == 'run':
      command.add_argument(
        '--retry',
        action='append',
        choices=('failed', 'diverged'),
        help='runs these again',
      )
  return parser


def _add_engine(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    '--parallel', type=int, default=1, help='how many trials at a time'
  )
  command.add_argument(
    '--gpus_per_trial', type=int, help='default: one if there are any'
  )
  command.add_argument(
    '--keep_going', action='store_true', help='after three equal failures, too'
  )


def _plan(
  options: argparse.Namespace, sweep_dir: pathlib.Path, target: list[str]
) -> int:
  if not target:
    raise errors.ConfigError(
      'what is to be run? write it after --, as in: tftrain-sweep plan ... -- '
      'python -m tftrain'
    )
  for line in planner.plan(
    options.sweep, sweep_dir, target, options.gin_search_paths
  ):
    print(line, flush=True)
  return 0


def _run(plan: plan_lib.Plan, options: argparse.Namespace) -> int:
  places = resource_slots.make(options.parallel, options.gpus_per_trial)
  with _terminal_table.make(plan) as show:
    code = scheduler.Scheduler(
      plan, places, show=show, keep_going=options.keep_going
    ).run()
  if code > 1:
    print('Stopped; the same command goes on.')
    return code
  return _status(plan) or code


def _status(plan: plan_lib.Plan) -> int:
  found = results_lib.read(plan)
  print(_terminal_table.summary(plan, found, began=float('inf')))
  for result in found:
    if result.status in ('failed', 'diverged'):
      error = result.facts.get('error', '')
      print(f'{result.status}: {result.directory}: {error}')
  return 0


def run_main() -> None:
  """Runs the console script tftrain-sweep and exits with its code."""
  sys.exit(main())


if __name__ == '__main__':
  run_main()
