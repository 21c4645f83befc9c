"""The command line: absl flags in, exit code out."""

from collections.abc import Callable
from collections.abc import Sequence
import os
import sys
import types
from typing import Any

from absl import flags

from tftrain import errors
from tftrain import files
from tftrain import ledger
from tftrain import reports
from tftrain import reruns
from tftrain import trials

_USAGE = """tftrain: train what a gin file describes.

  tftrain --gin_file=configs/digits.gin --model_dir=/tmp/digits

The same command resumes a run that was interrupted. Exit codes: 0 done, 1
failed, 2 wrong configuration or input, 130 SIGINT, 143 SIGTERM or out of
max_time (see --preempt_exit_code).
"""

_MODES = (
  'train',
  'eval',
  'train_and_eval',
  'eval_continuously',
  'export',
  'predict',
  'replay',
  'check',
  'inspect_data',
  'rerun',
  'describe',
)

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', [], 'Configuration file; may be given several times.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings',
  [],
  "A binding such as 'Experiment.steps = 100'; may be given several times.",
)
_GIN_SEARCH_PATHS = flags.DEFINE_multi_string(
  'gin_search_paths', [], 'Directory to look for configuration files in.'
)
_MODEL_DIR = flags.DEFINE_string(
  'model_dir', None, 'Directory of the run: checkpoints, summaries, export.'
)
_MODE = flags.DEFINE_enum('mode', 'train_and_eval', _MODES, 'What to do.')
_RUN = flags.DEFINE_string(
  'run', None, 'Directory of the run that rerun repeats.'
)
_STRATEGY = flags.DEFINE_string(
  'strategy', None, 'Which devices: auto, one_device or mirrored.'
)
_OVERFIT_BATCHES = flags.DEFINE_integer(
  'overfit_batches', None, 'Train on the first so many batches again and again.'
)
_LIMIT_EVAL_BATCHES = flags.DEFINE_integer(
  'limit_eval_batches', None, 'Evaluate on so many batches at most.'
)
_LOCAL_DEVICES = flags.DEFINE_integer(
  'local_devices', None, 'Split the CPU into this many logical devices.'
)
_CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  'latest',
  'What to evaluate, export or predict with: latest, best or a step.',
)
_INPUT = flags.DEFINE_string(
  'input', None, 'What to predict: a file or a glob of records, CSV or arrays.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Where predictions go: a name that ends in .jsonl or .npz.'
)
_STEP = flags.DEFINE_integer(
  'step', None, 'Which step to replay.', lower_bound=1
)
_EVAL_TIMEOUT = flags.DEFINE_integer(
  'eval_timeout',
  600,
  'Seconds without a trainer after which eval_continuously gives up.',
  lower_bound=1,
)
_STOP_SIGNALS = flags.DEFINE_list(
  'stop_signals', ['SIGTERM', 'SIGINT'], 'Signals that stop the run.'
)
_SAVE_SIGNALS = flags.DEFINE_list(
  'save_signals', ['SIGUSR1'], 'Signals that save and let the run go on.'
)
_PREEMPT_EXIT_CODE = flags.DEFINE_integer(
  'preempt_exit_code',
  None,
  'Exit code of a run that was stopped and is to be resumed.',
  lower_bound=0,
  upper_bound=255,
)
_DEBUG_NUMERICS = flags.DEFINE_boolean(
  'debug_numerics', False, 'Name the operation that makes the first NaN.'
)
_QUIET = flags.DEFINE_boolean(
  'quiet', False, 'Print no progress, only warnings and what came of it.'
)
_PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps', None, 'Which steps to profile, first and last: 10:19.'
)
_FORMAT = flags.DEFINE_enum(
  'format', 'text', ('text', 'json'), 'How describe answers.'
)
_SWEEP_DIR = flags.DEFINE_string(
  'sweep_dir', None, 'Directory of the sweep that --trial_index is of.'
)
_TRIAL_INDEX = flags.DEFINE_integer(
  'trial_index', None, 'Which trial of a sweep to run.', lower_bound=0
)
_RUN_EAGERLY = flags.DEFINE_boolean(
  'run_eagerly', False, 'Run without compiling, to debug with pdb.'
)


def main(argv: list[str] | None = None) -> None:
  """Runs the command line and exits with its code."""
  sys.exit(run(sys.argv if argv is None else argv))


def run(argv: list[str]) -> int:
  """Runs the command line; returns the exit code."""
  if any(word in ('--help', '-help', '-h', '--helpfull') for word in argv[1:]):
    print(_USAGE)
    print(flags.FLAGS.module_help(__name__))
    return 0
  try:
    _parse(argv)
    if _TRIAL_INDEX.value is not None:
      return trials.run(str(_SWEEP_DIR.value), _TRIAL_INDEX.value, _run_trial)
    return _work()
  except errors.Error as error:
    print(f'error: {_first_line(error)}', file=sys.stderr)
    return error.exit_code


def _first_line(error: errors.Error) -> str:
  """What we said; gin adds lines about its own calls."""
  return str(error).splitlines()[0]


def _parse(argv: list[str]) -> None:
  try:
    rest = flags.FLAGS(argv)[1:]
  except flags.Error as error:
    raise errors.ConfigError(f'{errors.one_line(error)}; see --help') from error
  if rest:
    raise errors.ConfigError(
      f'{rest[0]!r} is not a flag; a binding goes into '
      f"--gin_bindings='{rest[0]}'"
    )
  needed: dict[str, Any] = {'gin_file': _GIN_FILE, 'model_dir': _MODEL_DIR}
  if _MODE.value in ('inspect_data', 'check'):
    del needed['model_dir']
  if _SWEEP_DIR.value or _TRIAL_INDEX.value is not None:
    needed = {'sweep_dir': _SWEEP_DIR}
    trials.check_flags(flags.FLAGS)
  if _MODE.value == 'rerun':
    needed = {'run': _RUN, 'model_dir': _MODEL_DIR}
  if _MODE.value == 'predict':
    needed.update(input=_INPUT, output=_OUTPUT)
  if _MODE.value == 'replay':
    needed.update(step=_STEP)
  for name, flag in needed.items():
    if not flag.value:
      raise errors.ConfigError(f'--{name} is missing; see --help')
  if _MODE.value == 'rerun':
    _take_flags_of_run()


def _take_flags_of_run() -> None:
  """Sets what the run to be repeated was started with."""
  if _GIN_FILE.value:
    raise errors.ConfigError(
      '--mode=rerun takes the configuration of --run; leave out --gin_file'
    )
  found = reruns.flags_of(str(_RUN.value), str(_MODEL_DIR.value))
  for name, value in found.items():
    if not flags.FLAGS[name].present:
      flags.FLAGS[name].parse(value)


def _run_trial(trial: trials.Trial) -> int:
  for name, value in trial.flags().items():
    given = flags.FLAGS[name].value
    flags.FLAGS[name].value = value if given is None else value + given
  return _work(trial.actions())


def _rerun(job: Any, config: Any) -> int:
  old = str(_RUN.value)
  for line in reruns.warnings(old, job.life()):
    print(f'warning: {line}', file=sys.stderr, flush=True)
  code = _train(job, config)
  if not code:
    print(reruns.verdict(old, str(job.model_dir)))
  return code


def _work(watching: Sequence[reports.Action] = ()) -> int:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  heavy = _import_heavy()
  config, tf = heavy.config, heavy.tf
  if _LOCAL_DEVICES.value is not None:
    heavy.strategies.set_local_devices(_LOCAL_DEVICES.value)
  tf.config.run_functions_eagerly(_RUN_EAGERLY.value)
  if _DEBUG_NUMERICS.value:
    tf.debugging.enable_check_numerics()
  if _MODE.value == 'describe' and _SWEEP_DIR.value:
    print(heavy.trialchecks.described(_SWEEP_DIR.value))
    return 0
  bindings = list(_GIN_BINDINGS.value)
  for flag in (_STRATEGY, _OVERFIT_BATCHES, _LIMIT_EVAL_BATCHES):
    if flag.value is not None:
      bindings.append(f'Experiment.{flag.name} = {flag.value!r}')
  experiment = config.load(_GIN_FILE.value, bindings, _GIN_SEARCH_PATHS.value)
  if watching:
    experiment = config.watched(experiment, watching)
  if _MODE.value == 'inspect_data':
    print(heavy.inspections.inspect(experiment))
    return 0
  if _MODE.value == 'check':
    return _check(experiment, heavy)
  assert _MODEL_DIR.value is not None  # _parse has seen to that
  model_dir = files.run_directory(_MODEL_DIR.value)
  config.check_same(model_dir)
  if _PROFILE_STEPS.value is not None:
    experiment = config.profiled(experiment, _PROFILE_STEPS.value)
  mode = _MODE.value
  trained = reruns.mode_of(str(_RUN.value)) if mode == 'rerun' else mode
  if mode == 'eval_continuously':
    return _follow(
      experiment.follow(
        model_dir,
        timeout=float(_EVAL_TIMEOUT.value),
        stop_signals=_STOP_SIGNALS.value,
        quiet=_QUIET.value,
      )
    )
  job = experiment.prepare(
    model_dir,
    evaluate=trained not in ('train', 'replay'),
    stop_signals=_STOP_SIGNALS.value,
    save_signals=_SAVE_SIGNALS.value,
    started=ledger.process_start(),
    quiet=_QUIET.value,
  )
  if trained not in ('train', 'replay'):
    config.check_used()
  actions: dict[str, Callable[[Any, Any], int]] = {
    'train': _train,
    'train_and_eval': _train,
    'eval': _evaluate,
    'export': _export,
    'predict': _predict,
    'replay': _replay,
    'rerun': _rerun,
  }
  return actions[mode](job, config)


def _check(experiment: Any, heavy: Any) -> int:
  """A line for each check; nothing is left of them."""
  try:
    for line in heavy.preflights.check(experiment):
      print(line, flush=True)
    heavy.config.check_used()
  except errors.Error as error:
    print(f'FAILED      {_first_line(error)}')
    return 1
  print('config      all of it is used')
  return 0


def _train(job: Any, config: Any) -> int:
  result = job.train(config.texts(), _GIN_BINDINGS.value)
  if result.already_done:
    print(
      f'Already at step {result.step:,} of {result.last_step:,}; nothing to do.'
    )
  elif result.exit_code:
    print(
      f'Stopped at step {result.step:,} of {result.last_step:,}; the same '
      'command resumes it.'
    )
    return _stopped(int(result.exit_code))
  else:
    print(f'Done: step {result.step:,} of {result.last_step:,}.')
  _print_scalars(result.scalars)
  print(f'Checkpoints  {job.checkpointer.directory}')
  print(ledger.table(result.seconds, _input_hint(job, result.seconds)))
  export = job.model_dir / 'export'
  if export.is_dir():
    print(f'Export       {export / str(result.step)}')
  print(f'Next:        tensorboard --logdir {job.model_dir}')
  return 0


def _input_hint(job: Any, seconds: Any) -> str:
  """Which stage of the input is slow, where the run waited for it."""
  if not ledger.waits_for_input(seconds):
    return ''
  return str(_import_heavy().inspections.slowest_stage(job.trainer.pipeline))


def _stopped(code: int) -> int:
  wanted = _PREEMPT_EXIT_CODE.value
  return code if wanted is None else int(wanted)


def _follow(follower: Any) -> int:
  steps, exit_code = follower.follow()
  count = f'{len(steps)} checkpoint{"" if len(steps) == 1 else "s"}'
  if exit_code:
    print(f'Stopped; evaluated {count}. The same command goes on.')
    return _stopped(int(exit_code))
  print(f'Done: evaluated {count}; the run has finished.')
  return 0


def _evaluate(job: Any, config: Any) -> int:
  del config
  result = job.evaluate(_CHECKPOINT.value)
  print(f'Evaluated the checkpoint of step {result.step:,}.')
  _print_scalars(result.scalars)
  return 0


def _export(job: Any, config: Any) -> int:
  del config
  print(f'Exported to {job.export(_CHECKPOINT.value)}')
  return 0


def _predict(job: Any, config: Any) -> int:
  del config
  result = job.predict(_INPUT.value, _OUTPUT.value, _CHECKPOINT.value)
  if result.exit_code:
    print('Stopped; the same command goes on.')
    return _stopped(int(result.exit_code))
  print(
    f'Predicted {result.examples:,} examples with the checkpoint of step '
    f'{result.step:,}: {_OUTPUT.value}'
  )
  return 0


def _replay(job: Any, config: Any) -> int:
  del config
  print(_import_heavy().replays.replay(job, int(_STEP.value or 1)))
  return 0


def _print_scalars(scalars: Any) -> None:
  for name, value in scalars.items():
    if name.startswith('eval/'):
      print(f'{name:<24} {value:.4f}')


def _import_heavy() -> Any:
  """The one place of this file that imports TensorFlow, so --help need not."""
  import tensorflow as tf

  from tftrain import config
  from tftrain import inspections
  from tftrain import preflights
  from tftrain import replays
  from tftrain import strategies
  from tftrain import trialchecks

  return types.SimpleNamespace(
    config=config,
    inspections=inspections,
    preflights=preflights,
    replays=replays,
    strategies=strategies,
    trialchecks=trialchecks,
    tf=tf,
  )
