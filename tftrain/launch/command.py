"""The command line: absl flags in, exit code out."""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import os
import re
import sys
import types
from typing import Any, NoReturn

from absl import flags

from tftrain import errors
from tftrain.distribute import cluster_resolver
from tftrain.distribute import local_launcher
from tftrain.launch import _modes
from tftrain.launch import _rerun
from tftrain.launch import device_flags
from tftrain.platform import files
from tftrain.platform import goodput
from tftrain.report import report as report_lib
from tftrain.sweep import trial as trial_lib

_USAGE = """tftrain: train what a gin file describes.

  tftrain --gin_file=configs/digits.gin --model_dir=/tmp/digits

A value is changed by --gin.Experiment.steps=500, or --gin_bindings. The same
command resumes a run that was interrupted. Exit codes: 0 done, 1 failed, 2
wrong configuration or input, 130 SIGINT, 143 SIGTERM or out of max_time (see
--preempt_exit_code).
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
  'describe',
  'lr_find',
  'rerun',
)
_WITHOUT_RUN = ('inspect_data', 'check', 'describe', 'lr_find')

_GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', [], 'Configuration file; may be given several times.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings',
  [],
  "A binding such as 'Experiment.steps = 100'; may be given several times.",
)
_CONFIG_TRUST = flags.DEFINE_enum(
  'config_trust',
  'program',
  ['program', 'data'],
  'Whether gin files may import modules, or only set values.',
)
_FORMAT = flags.DEFINE_enum(
  'format', 'text', ['text', 'json'], 'How describe answers.'
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
  'strategy',
  None,
  'Which devices: auto, one_device, mirrored, multi_worker_mirrored or tpu.',
)
_WORKERS = flags.DEFINE_list(
  'workers', [], 'host:port of all processes that train together, chief first.'
)
_TASK = flags.DEFINE_integer(
  'task', None, 'Which of --workers this process is.', lower_bound=0
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
_LOCAL_WORKERS = flags.DEFINE_integer(
  'local_workers', None, 'Start this many workers on this machine.'
)
_MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts',
  0,
  'How often --local_workers starts all again after a failure.',
  lower_bound=0,
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
  'output',
  None,
  'Where predictions go, a name that ends in .jsonl or .npz; of lr_find .csv, '
  '.json or .png.',
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
  sys.exit(execute(sys.argv if argv is None else argv))


def run(
  main: Callable[[_modes.Job], int | None] | None = None,
  argv: list[str] | None = None,
) -> NoReturn:
  """Runs the command line from a script of the user's own, and exits.

  What the script has imported or registered is known to its gin files. `main`
  is called where the command would train; all other modes are as they are.

  >>> def main(job):
  ...   result = job.train()
  ...   print(result.scalars)
  >>> tftrain.launch.run(main)

  Args:
    main: Takes the Job, calls `job.train()`; returns an exit code, or None for
      that of the training. None trains as the command does.
    argv: The command line; None is that of the process.
  """
  sys.exit(execute(sys.argv if argv is None else argv, main))


def execute(
  argv: list[str], main: Callable[[_modes.Job], int | None] | None = None
) -> int:
  """Runs the command line; returns the exit code."""
  if any(word in ('--help', '-help', '-h', '--helpfull') for word in argv[1:]):
    print(_USAGE)
    print(flags.FLAGS.module_help(__name__))
    return 0
  try:
    argv, origins = rewritten(argv)
    _parse(argv)
    if _TRIAL_INDEX.value is not None:
      work = functools.partial(_run_trial, origins, main)
      return trial_lib.run(str(_SWEEP_DIR.value), _TRIAL_INDEX.value, work)
    together = _MODE.value in ('train', 'train_and_eval')
    if together and local_launcher.are_asked(_LOCAL_WORKERS.value):
      return _run_workers()
    if not cluster_resolver.enter(
      os.environ, _WORKERS.value, _TASK.value, together
    ):
      return 0  # one worker is enough
    return _work(origins, main)
  except errors.Error as error:
    print(f'error: {_modes.first_line(error)}', file=sys.stderr)
    return error.exit_code


_GIN_FLAG = re.compile(r'--?gin\.(.*)', re.DOTALL)


def rewritten(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """A command line with `--gin.NAME=VALUE` as `--gin_bindings=NAME = VALUE`.

  absl knows no flags whose names are not known before. The idea is that of t5x
  (`gin_utils.rewrite_gin_args`).

  Returns:
    (the command line, binding -> the flag that it was given with)

  Raises:
    ConfigError: A flag has no name, or no value.
  """
  words: list[str] = []
  origins: dict[str, str] = {}
  for number, word in enumerate(argv):
    if word == '--':
      return [*words, *argv[number:]], origins
    found = _GIN_FLAG.fullmatch(word)
    if not found or not number:
      words.append(word)
      continue
    name, equals, value = found[1].partition('=')
    if not re.fullmatch(r'(\w+/)*\w+(\.\w+)*', name) or not value.strip():
      raise errors.ConfigError(
        f'{word}: a binding is written --gin.NAME=VALUE, such as '
        f'--gin.{name if equals and name else "Experiment.steps"}=100'
      )
    binding = f'{name} = {value}'
    origins[binding] = f'--gin.{name}'
    words.append(f'--gin_bindings={binding}')
  return words, origins


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
  if _MODE.value in _WITHOUT_RUN:
    del needed['model_dir']
  if _SWEEP_DIR.value or _TRIAL_INDEX.value is not None:
    needed = {'sweep_dir': _SWEEP_DIR}
    trial_lib.check_flags(flags.FLAGS)
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
  found = _rerun.flags_of(str(_RUN.value), str(_MODEL_DIR.value))
  for name, value in found.items():
    if not flags.FLAGS[name].present:
      flags.FLAGS[name].parse(value)


def _run_workers() -> int:
  return local_launcher.run(
    int(_LOCAL_WORKERS.value or 0),
    max_restarts=_MAX_RESTARTS.value,
    stop=_STOP_SIGNALS.value,
    save=_SAVE_SIGNALS.value,
    stopped=_PREEMPT_EXIT_CODE.value,
  )


def _run_trial(
  origins: dict[str, str],
  main: Callable[[_modes.Job], int | None] | None,
  trial: trial_lib.Trial,
) -> int:
  for name, value in trial.flags().items():
    given = flags.FLAGS[name].value
    flags.FLAGS[name].value = value if given is None else value + given
  return _work(origins, main, trial.actions())


def _work(
  origins: dict[str, str],
  main: Callable[[_modes.Job], int | None] | None,
  watching: Sequence[report_lib.Action] = (),
) -> int:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  heavy = _import_heavy()
  heavy.devices.Devices(**device_flags.given()).set_up()
  if _LOCAL_DEVICES.value is not None:
    heavy.strategies.set_local_devices(_LOCAL_DEVICES.value)
  heavy.tf.config.run_functions_eagerly(_RUN_EAGERLY.value)
  if _DEBUG_NUMERICS.value:
    heavy.tf.debugging.enable_check_numerics()
  mode = str(_MODE.value)
  if mode == 'describe' and _SWEEP_DIR.value:
    print(heavy.trialchecks.described(_SWEEP_DIR.value))
    return 0
  loaded = _load(heavy.config, origins)
  if mode in _WITHOUT_RUN:
    return _without_run(mode, loaded, heavy)
  assert _MODEL_DIR.value is not None  # _parse has seen to that
  model_dir = files.run_directory(_MODEL_DIR.value)
  heavy.config.check_same(model_dir)
  experiment = heavy.config.watched(loaded.experiment, watching)
  if _PROFILE_STEPS.value is not None:
    experiment = heavy.config.profiled(experiment, _PROFILE_STEPS.value)
  trained = _rerun.mode_of(str(_RUN.value)) if mode == 'rerun' else mode
  if mode == 'eval_continuously':
    follower = experiment.follow(
      model_dir,
      timeout=float(_EVAL_TIMEOUT.value),
      stop_signals=_STOP_SIGNALS.value,
      quiet=_QUIET.value,
    )
    return _modes.follow(follower, _PREEMPT_EXIT_CODE.value)
  prepared = experiment.prepare(
    model_dir,
    evaluate=trained not in ('train', 'replay'),
    stop_signals=_STOP_SIGNALS.value,
    save_signals=_SAVE_SIGNALS.value,
    started=goodput.process_start(),
    quiet=_QUIET.value,
    recipe={'configuration': heavy.config.texts()['config.gin']},
  )
  if trained not in ('train', 'replay'):
    heavy.config.check_used()
  job = _modes.Job(
    experiment=experiment,
    run=prepared,
    texts=heavy.config.texts,
    bindings=_GIN_BINDINGS.value,
  )
  return _with_run(mode, job, heavy, main)


def _load(config: Any, origins: dict[str, str]) -> Any:
  bindings = list(_GIN_BINDINGS.value)
  asked = (_STRATEGY, _OVERFIT_BATCHES, _LIMIT_EVAL_BATCHES)
  for flag in (*asked, *device_flags.OF_EXPERIMENT):
    if flag.value is not None:
      binding = f'Experiment.{flag.name} = {flag.value!r}'
      bindings.append(binding)
      origins[binding] = f'--{flag.name}'
  return config.load_all(
    _GIN_FILE.value,
    bindings,
    _GIN_SEARCH_PATHS.value,
    origins=origins,
    trust=_CONFIG_TRUST.value,
  )


def _without_run(mode: str, loaded: Any, heavy: Any) -> int:
  """The modes that need no model_dir, and leave nothing behind."""
  if mode == 'describe':
    print(loaded.described(_FORMAT.value))
    return 0
  if mode == 'inspect_data':
    print(heavy.inspections.inspect(loaded.experiment))
    return 0
  if mode == 'lr_find':
    return _modes.lr_find(loaded.experiment, _OUTPUT.value, heavy)
  return _modes.check(loaded.experiment, heavy)


def _with_run(
  mode: str,
  job: _modes.Job,
  heavy: Any,
  main: Callable[[_modes.Job], int | None] | None,
) -> int:
  job_main = main or (lambda job: _modes.train(job, heavy))
  actions: dict[str, Callable[[], int | None]] = {
    'train': lambda: job_main(job),
    'train_and_eval': lambda: job_main(job),
    'eval': lambda: _modes.evaluate(job, _CHECKPOINT.value),
    'export': lambda: _modes.export(job, _CHECKPOINT.value),
    'predict': lambda: _modes.predict(
      job, str(_INPUT.value), str(_OUTPUT.value), _CHECKPOINT.value
    ),
    'replay': lambda: _modes.replay(job, int(_STEP.value or 1), heavy),
    'rerun': lambda: _modes.rerun(job, str(_RUN.value), job_main),
  }
  code = actions[mode]()
  return job.exit_code(_PREEMPT_EXIT_CODE.value) if code is None else code


def _import_heavy() -> Any:
  """The one place of this file that imports TensorFlow, so --help need not."""
  import tensorflow as tf

  from tftrain.config import loader
  from tftrain.debug import dry_run
  from tftrain.debug import inspect_data
  from tftrain.debug import lr_finder
  from tftrain.debug import replay
  from tftrain.distribute import devices
  from tftrain.distribute import strategy as strategy_lib
  from tftrain.launch import _describe_sweep

  return types.SimpleNamespace(
    config=loader,
    devices=devices,
    inspections=inspect_data,
    preflights=dry_run,
    rangetests=lr_finder,
    replays=replay,
    strategies=strategy_lib,
    trialchecks=_describe_sweep,
    tf=tf,
  )
