"""The command: parses the flags, runs a mode and returns an exit code."""

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
from tftrain.launch import flags as flags_lib
from tftrain.platform import files
from tftrain.platform import goodput
from tftrain.report import action as action_lib
from tftrain.sweep import trial as trial_lib

_USAGE = """tftrain: train what a gin file describes.

  tftrain --gin_file=configs/digits.gin --model_dir=/tmp/digits

A value is changed by --gin.Experiment.steps=500, or --gin_bindings. The same
command resumes a run that was interrupted. Exit codes: 0 done, 1 failed, 2
wrong configuration or input, 130 SIGINT, 143 SIGTERM or out of max_time (see
--preempt_exit_code).
"""


def main(argv: list[str] | None = None) -> None:
  """Runs the command line and exits with its code."""
  sys.exit(execute(sys.argv if argv is None else argv))


def run(
  main: Callable[[_modes.Job], int | None] | None = None,
  argv: list[str] | None = None,
) -> NoReturn:
  """Runs the command line from a user's script, and exits.

  Gin files can use what the script has imported or registered. `main` is called
  in the modes that train; all other modes are unchanged.

  >>> def main(job):
  ...   result = job.train()
  ...   print(result.scalars)
  >>> tftrain.launch.run(main)

  Args:
    main: Function that takes the Job and calls `job.train()`. It returns an
      exit code, or None for that of the training. Without `main` the command
      trains as usual.
    argv: Command line; by default that of the process.
  """
  sys.exit(execute(sys.argv if argv is None else argv, main))


def execute(
  argv: list[str], main: Callable[[_modes.Job], int | None] | None = None
) -> int:
  """Runs the command line; returns the exit code."""
  if any(word in ('--help', '-help', '-h', '--helpfull') for word in argv[1:]):
    print(_USAGE)
    print(flags.FLAGS.module_help(flags_lib.__name__))
    return 0
  try:
    argv, origins = rewritten(argv)
    _parse(argv)
    if flags_lib.TRIAL_INDEX.value is not None:
      work = functools.partial(_run_trial, origins, main)
      return trial_lib.run(
        str(flags_lib.SWEEP_DIR.value), flags_lib.TRIAL_INDEX.value, work
      )
    together = flags_lib.MODE.value in ('train', 'train_and_eval')
    if together and local_launcher.must_launch(flags_lib.LOCAL_WORKERS.value):
      return _run_workers()
    if not cluster_resolver.enter(
      os.environ, flags_lib.WORKERS.value, flags_lib.TASK_INDEX.value, together
    ):
      return 0  # the chief alone runs this mode
    return _work(origins, main)
  except errors.Error as error:
    print(f'error: {_modes.first_line(error)}', file=sys.stderr)
    return error.exit_code


_GIN_FLAG = re.compile(r'--?gin\.(.*)', re.DOTALL)


def rewritten(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """Rewrites `--gin.NAME=VALUE` as `--gin_bindings=NAME = VALUE`.

  absl accepts only flags that are defined in advance. The idea is that of t5x
  (`gin_utils.rewrite_gin_args`).

  Returns:
    (the command line, binding -> the flag that gave it)

  Raises:
    ConfigError: If a flag has no valid name, or no value.
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
  needed: dict[str, Any] = {
    'gin_file': flags_lib.GIN_FILE,
    'model_dir': flags_lib.MODEL_DIR,
  }
  if flags_lib.MODE.value in flags_lib.WITHOUT_RUN:
    del needed['model_dir']
  if flags_lib.SWEEP_DIR.value or flags_lib.TRIAL_INDEX.value is not None:
    needed = {'sweep_dir': flags_lib.SWEEP_DIR}
    trial_lib.check_flags(flags.FLAGS)
  if flags_lib.MODE.value == 'rerun':
    needed = {'run': flags_lib.RUN, 'model_dir': flags_lib.MODEL_DIR}
  if flags_lib.MODE.value == 'predict':
    needed.update(input=flags_lib.INPUT, output=flags_lib.OUTPUT)
  if flags_lib.MODE.value == 'replay':
    needed.update(step=flags_lib.STEP)
  for name, flag in needed.items():
    if not flag.value:
      raise errors.ConfigError(f'--{name} is missing; see --help')
  if flags_lib.MODE.value == 'rerun':
    _take_flags_of_run()


def _take_flags_of_run() -> None:
  """Sets the flags that the run to be repeated was started with."""
  if flags_lib.GIN_FILE.value:
    raise errors.ConfigError(
      '--mode=rerun takes the configuration of --run; leave out --gin_file'
    )
  found = _rerun.flags_of(
    str(flags_lib.RUN.value), str(flags_lib.MODEL_DIR.value)
  )
  for name, value in found.items():
    if not flags.FLAGS[name].present:
      flags.FLAGS[name].parse(value)


def _run_workers() -> int:
  return local_launcher.run(
    int(flags_lib.LOCAL_WORKERS.value or 0),
    max_restarts=flags_lib.MAX_RESTARTS.value,
    stop=flags_lib.STOP_SIGNALS.value,
    save=flags_lib.SAVE_SIGNALS.value,
    stopped=flags_lib.PREEMPT_EXIT_CODE.value,
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
  watching: Sequence[action_lib.ActionLike] = (),
) -> int:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  heavy = _import_heavy()
  heavy.devices.Devices(**flags_lib.device_options()).set_up()
  if flags_lib.LOCAL_DEVICES.value is not None:
    heavy.strategies.set_local_devices(flags_lib.LOCAL_DEVICES.value)
  heavy.tf.config.run_functions_eagerly(flags_lib.RUN_EAGERLY.value)
  if flags_lib.DEBUG_NUMERICS.value:
    heavy.tf.debugging.enable_check_numerics()
  mode = str(flags_lib.MODE.value)
  if mode == 'describe' and flags_lib.SWEEP_DIR.value:
    print(heavy.trialchecks.described(flags_lib.SWEEP_DIR.value))
    return 0
  loaded = _load(heavy.config, origins)
  if mode in flags_lib.WITHOUT_RUN:
    return _without_run(mode, loaded, heavy)
  assert flags_lib.MODEL_DIR.value is not None  # _parse() requires it
  model_dir = files.run_directory(flags_lib.MODEL_DIR.value)
  heavy.config.check_same(model_dir)
  experiment = heavy.config.watched(loaded.experiment, watching)
  if flags_lib.PROFILE_STEPS.value is not None:
    experiment = heavy.config.profiled(
      experiment, flags_lib.PROFILE_STEPS.value
    )
  trained = (
    _rerun.mode_of(str(flags_lib.RUN.value)) if mode == 'rerun' else mode
  )
  if mode == 'eval_continuously':
    follower = experiment.follow(
      model_dir,
      timeout=float(flags_lib.EVAL_TIMEOUT.value),
      stop_signals=flags_lib.STOP_SIGNALS.value,
      quiet=flags_lib.QUIET.value,
    )
    return _modes.follow(follower, flags_lib.PREEMPT_EXIT_CODE.value)
  prepared = experiment.prepare(
    model_dir,
    evaluate=trained not in ('train', 'replay'),
    stop_signals=flags_lib.STOP_SIGNALS.value,
    save_signals=flags_lib.SAVE_SIGNALS.value,
    started=goodput.process_start(),
    quiet=flags_lib.QUIET.value,
    recipe={'configuration': heavy.config.texts()['config.gin']},
  )
  if trained not in ('train', 'replay'):
    heavy.config.check_used()
  job = _modes.Job(
    experiment=experiment,
    run=prepared,
    texts=heavy.config.texts,
    bindings=flags_lib.GIN_BINDINGS.value,
  )
  return _with_run(mode, job, heavy, main)


def _load(config: Any, origins: dict[str, str]) -> Any:
  bindings = list(flags_lib.GIN_BINDINGS.value)
  asked = (
    flags_lib.STRATEGY,
    flags_lib.OVERFIT_BATCHES,
    flags_lib.LIMIT_EVAL_BATCHES,
  )
  for flag in (*asked, *flags_lib.OF_EXPERIMENT):
    if flag.value is not None:
      binding = f'Experiment.{flag.name} = {flag.value!r}'
      bindings.append(binding)
      origins[binding] = f'--{flag.name}'
  return config.load_all(
    flags_lib.GIN_FILE.value,
    bindings,
    flags_lib.GIN_SEARCH_PATHS.value,
    origins=origins,
    trust=flags_lib.CONFIG_TRUST.value,
  )


def _without_run(mode: str, loaded: Any, heavy: Any) -> int:
  """Runs a mode that needs no model_dir and leaves no run behind."""
  if mode == 'describe':
    print(loaded.described(flags_lib.FORMAT.value))
    return 0
  if mode == 'inspect_data':
    print(heavy.inspections.inspect(loaded.experiment))
    return 0
  if mode == 'lr_find':
    return _modes.lr_find(loaded.experiment, flags_lib.OUTPUT.value, heavy)
  if mode == 'tune':
    return _modes.tune(
      loaded.experiment,
      flags_lib.OUTPUT.value or 'tuned.gin',
      flags_lib.TUNE_SECONDS.value,
      flags_lib.TUNE_BATCH_SIZES.value,
      heavy,
    )
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
    'eval': lambda: _modes.evaluate(job, flags_lib.CHECKPOINT.value),
    'export': lambda: _modes.export(job, flags_lib.CHECKPOINT.value),
    'predict': lambda: _modes.predict(
      job,
      str(flags_lib.INPUT.value),
      str(flags_lib.OUTPUT.value),
      flags_lib.CHECKPOINT.value,
    ),
    'replay': lambda: _modes.replay(job, int(flags_lib.STEP.value or 1), heavy),
    'rerun': lambda: _modes.rerun(job, str(flags_lib.RUN.value), job_main),
  }
  code = actions[mode]()
  return (
    job.exit_code(flags_lib.PREEMPT_EXIT_CODE.value) if code is None else code
  )


def _import_heavy() -> Any:
  """Imports TensorFlow and what needs it, which --help does without."""
  import tensorflow as tf

  from tftrain.config import loader
  from tftrain.debug import dry_run
  from tftrain.debug import inspect_data
  from tftrain.debug import lr_finder
  from tftrain.debug import replay
  from tftrain.debug import tuning
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
    tunings=tuning,
    tf=tf,
  )
