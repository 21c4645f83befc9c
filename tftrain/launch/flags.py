"""Flags of the command line.

Importing this module defines the flags; only the command imports it.
"""

from typing import Any

from absl import flags

MODES = (
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
  'tune',
  'rerun',
)
WITHOUT_RUN = ('inspect_data', 'check', 'describe', 'lr_find', 'tune')
GIN_FILE = flags.DEFINE_multi_string(
  'gin_file', [], 'Configuration file; may be given several times.'
)
GIN_BINDINGS = flags.DEFINE_multi_string(
  'gin_bindings',
  [],
  "A binding such as 'Experiment.steps = 100'; may be given several times.",
)
CONFIG_TRUST = flags.DEFINE_enum(
  'config_trust',
  'program',
  ['program', 'data'],
  'Whether gin files may import modules, or only set values.',
)
FORMAT = flags.DEFINE_enum(
  'format', 'text', ['text', 'json'], 'How describe answers.'
)
GIN_SEARCH_PATHS = flags.DEFINE_multi_string(
  'gin_search_paths', [], 'Directory to look for configuration files in.'
)
MODEL_DIR = flags.DEFINE_string(
  'model_dir', None, 'Directory of the run: checkpoints, summaries, export.'
)
MODE = flags.DEFINE_enum('mode', 'train_and_eval', MODES, 'What to do.')
RUN = flags.DEFINE_string(
  'run', None, 'Directory of the run that rerun repeats.'
)
STRATEGY = flags.DEFINE_string(
  'strategy',
  None,
  'Which devices: auto, one_device, mirrored, multi_worker_mirrored or tpu.',
)
WORKERS = flags.DEFINE_list(
  'workers', [], 'host:port of all processes that train together, chief first.'
)
TASK_INDEX = flags.DEFINE_integer(
  'task_index', None, 'Which of --workers this process is.', lower_bound=0
)
OVERFIT_BATCHES = flags.DEFINE_integer(
  'overfit_batches', None, 'Train on the first so many batches again and again.'
)
LIMIT_EVAL_BATCHES = flags.DEFINE_integer(
  'limit_eval_batches', None, 'Evaluate on so many batches at most.'
)
LOCAL_DEVICES = flags.DEFINE_integer(
  'local_devices', None, 'Split the CPU into this many logical devices.'
)
LOCAL_WORKERS = flags.DEFINE_integer(
  'local_workers', None, 'Start this many workers on this machine.'
)
MAX_RESTARTS = flags.DEFINE_integer(
  'max_restarts',
  0,
  'How often --local_workers starts all again after a failure.',
  lower_bound=0,
)
CHECKPOINT = flags.DEFINE_string(
  'checkpoint',
  'latest',
  'What to evaluate, export or predict with: latest, best or a step.',
)
INPUT = flags.DEFINE_string(
  'input', None, 'What to predict: a file or a glob of records, CSV or arrays.'
)
OUTPUT = flags.DEFINE_string(
  'output',
  None,
  'Where predictions go, a name that ends in .jsonl or .npz; of lr_find .csv, '
  '.json or .png; of tune .gin.',
)
TUNE_BATCH_SIZES = flags.DEFINE_list(
  'tune_batch_sizes', [], 'Global batch sizes that tune measures, too.'
)
TUNE_SECONDS = flags.DEFINE_float(
  'tune_seconds',
  60.0,
  'About the time that tune measures, without compilations.',
  lower_bound=1.0,
)
STEP = flags.DEFINE_integer(
  'step', None, 'Which step to replay.', lower_bound=1
)
EVAL_TIMEOUT = flags.DEFINE_integer(
  'eval_timeout',
  600,
  'Seconds without a trainer after which eval_continuously gives up.',
  lower_bound=1,
)
STOP_SIGNALS = flags.DEFINE_list(
  'stop_signals', ['SIGTERM', 'SIGINT'], 'Signals that stop the run.'
)
SAVE_SIGNALS = flags.DEFINE_list(
  'save_signals', ['SIGUSR1'], 'Signals that save and let the run go on.'
)
PREEMPT_EXIT_CODE = flags.DEFINE_integer(
  'preempt_exit_code',
  None,
  'Exit code of a run that was stopped and is to be resumed.',
  lower_bound=0,
  upper_bound=255,
)
DEBUG_NUMERICS = flags.DEFINE_boolean(
  'debug_numerics', False, 'Name the operation that makes the first NaN.'
)
QUIET = flags.DEFINE_boolean(
  'quiet', False, 'Print no progress, only warnings and what came of it.'
)
PROFILE_STEPS = flags.DEFINE_string(
  'profile_steps', None, 'Which steps to profile, first and last: 10:19.'
)
SWEEP_DIR = flags.DEFINE_string(
  'sweep_dir', None, 'Directory of the sweep that --trial_index is of.'
)
TRIAL_INDEX = flags.DEFINE_integer(
  'trial_index', None, 'Which trial of a sweep to run.', lower_bound=0
)
RUN_EAGERLY = flags.DEFINE_boolean(
  'run_eagerly', False, 'Run without compiling, to debug with pdb.'
)
MEMORY_GROWTH = flags.DEFINE_boolean(
  'memory_growth',
  False,
  "Take a GPU's memory as it is needed, not all at once.",
)


TF32 = flags.DEFINE_boolean(
  'tf32',
  None,
  'Whether float32 products may be computed in TensorFloat-32.',
)
DETERMINISTIC = flags.DEFINE_boolean(
  'deterministic',
  False,
  'Use only operations that give the same bits each time.',
)
GPU_THREADS = flags.DEFINE_integer(
  'gpu_threads',
  None,
  'Threads that each GPU has for itself.',
  lower_bound=1,
)
INTER_OP_THREADS = flags.DEFINE_integer(
  'inter_op_threads',
  None,
  'Threads between which operations are dealt.',
  lower_bound=1,
)
INTRA_OP_THREADS = flags.DEFINE_integer(
  'intra_op_threads',
  None,
  'Threads that one operation may use.',
  lower_bound=1,
)
ALL_REDUCE = flags.DEFINE_string(
  'all_reduce',
  None,
  'How replicas add up gradients: auto, nccl, hierarchical or ring.',
)
BUCKET_MB = flags.DEFINE_float(
  'bucket_mb',
  None,
  'Megabytes of gradients that go at once.',
)


OF_EXPERIMENT = (ALL_REDUCE, BUCKET_MB)
"""The flags that set a parameter of the Experiment."""


def device_options() -> dict[str, Any]:
  """Returns the fields of `devices.Devices` as given by the flags."""
  return {
    flag.name: flag.value
    for flag in (
      MEMORY_GROWTH,
      TF32,
      DETERMINISTIC,
      GPU_THREADS,
      INTER_OP_THREADS,
      INTRA_OP_THREADS,
    )
  }
