"""Guards against the faults: one for each row of docs/reliability.md.

mutations.py takes them away, one at a time, and runs the row's test.
"""

import dataclasses
import re

_HERE = 'tests/faults/'


@dataclasses.dataclass(frozen=True)
class Guard:
  """What is taken away, and who must notice.

  Attributes:
    what: What it does.
    file: Below tftrain/.
    old: Its text, which is there once.
    new: What stands there without it.
    test: The test's path and name, as pytest takes them.
  """

  what: str
  file: str
  old: str
  new: str
  test: str

  @property
  def function(self):
    """The test without its parameters."""
    return re.sub(r'\[.*', '', self.test)


def _guards(file, *rows):
  """Guards whose tests are in one file, by default of tests/faults/."""
  path = file if '/' in file else f'{_HERE}{file}'
  return tuple(
    Guard(what, where, old, new, f'{path}::test_{test}')
    for test, what, where, old, new in rows
  )


_STAGED = (
  "staged = final.with_name(f'{STAGING}{final.name}-{uuid.uuid4().hex}')"
)
_KEPT_FAILURE = """      self._failure = error
      return
"""

GUARDS = (
  *_guards(
    'sweep_test.py',
    (
      'killed_at_each_call[save]',
      'a save is written aside',
      'platform/files.py',
      _STAGED,
      'staged = final',
    ),
    (
      'killed_while_a_step_is_saved_again',
      'what is committed is not saved again',
      'checkpoint/checkpointer.py',
      '    if step in self.steps():\n      return\n',
      '',
    ),
    (
      'killed_between_the_removals_of_an_old_checkpoint',
      'a checkpoint leaves the list before its files go',
      'platform/files.py',
      '  disk.rename(path, doomed)\n',
      '  doomed = path\n',
    ),
    (
      'a_save_is_refused_at_each_call[ENOSPC]',
      'the failure of a save is kept',
      'checkpoint/checkpointer.py',
      _KEPT_FAILURE,
      '      return\n',
    ),
    (
      'killed_at_each_call[export]',
      'an export is written aside',
      'platform/files.py',
      _STAGED,
      'staged = final',
    ),
    (
      'others_are_refused_at_each_call[flush-ENOSPC]',
      'what events suffer is forgiven',
      'platform/best_effort.py',
      'except self._kinds as error:',
      'except ZeroDivisionError as error:',
    ),
    (
      'an_old_checkpoint_that_cannot_be_removed_fails_no_save',
      'what cannot be removed is only warned of',
      'checkpoint/checkpointer.py',
      "logging.warning('Could not remove checkpoint %d: %s', step, error)",
      'self._failure = error',
    ),
    (
      'a_good_checkpoint_outlives_a_lack_of_descriptors',
      'a lack of descriptors is no damage',
      'checkpoint/format.py',
      'return error.errno in _PASSING',
      'return False',
    ),
  ),
  *_guards(
    'tests/integration/kill_and_resume_test.py',
    (
      'killed_and_started_again_equals_never_killed[block]',
      'updates are counted on',
      'train/counters.py',
      "self.without_update.assign(state['step'] - state['updates'])",
      "self.without_update.assign(state['step'])",
    ),
  ),
  *_guards(
    'tests/summary/metric_writer_test.py',
    (
      'lines_after_the_restored_step_are_taken_back',
      'lines after the restored step are taken back',
      'platform/jsonl.py',
      '_keep_until(self.path, step)',
      'pass',
    ),
  ),
  *_guards(
    'soak_test.py',
    (
      'killed_every_other_second_ends_as_never_killed',
      'means go on where they were',
      'train/_train_metrics.py',
      "self._means.write_state(state['means'])",
      'pass',
    ),
  ),
  *_guards(
    'blocks_test.py',
    (
      'killed_in_any_block_it_ends_as_never_killed',
      'batches that were taken ahead are used from their place',
      'train/blocks.py',
      '    taken.offset += count\n',
      '    taken.offset += 0\n',
    ),
  ),
  *_guards(
    'disk_test.py',
    (
      'a_signal_leaves_nothing_half_done',
      'a probe is removed whatever comes',
      'platform/files.py',
      '    finally:  # a signal may interrupt an export just here\n',
      '    except FileNotFoundError:\n',
    ),
    (
      'a_save_that_fails_says_so_and_leaves_what_was',
      'the failure of a save is raised',
      'checkpoint/checkpointer.py',
      _KEPT_FAILURE,
      '      return\n',
    ),
    (
      'death_in_a_save_leaves_the_old_or_the_new',
      'a save is one rename',
      'platform/files.py',
      _STAGED,
      'staged = final',
    ),
    (
      'a_disk_that_fills_up_within_a_line_keeps_none_of_it',
      'half a line is taken back',
      'platform/_filesystem.py',
      'os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)',
      'pass',
    ),
  ),
  *_guards(
    'power_test.py',
    (
      'a_power_cut_loses_no_durable_checkpoint',
      'durable: contents are synced',
      'platform/files.py',
      '    if durable:\n      sync(staged)\n',
      '',
    ),
    (
      'a_power_cut_does_not_lose_the_first_durable_checkpoint',
      'durable: directories are synced',
      'platform/files.py',
      'for parent in final.absolute().parents[:3]:',
      'for parent in final.absolute().parents[:0]:',
    ),
  ),
  *_guards(
    'chains_test.py',
    (
      'a_chain_of_mishaps_changes_nothing',
      'a checkpoint of another run is refused',
      'checkpoint/checkpointer.py',
      '    self._check(path, manifest)\n',
      '',
    ),
    (
      'a_full_disk_ends_a_life_with_an_error_of_ours',
      'what the system says is explained',
      'platform/files.py',
      '  except OSError as error:\n    raise errors.RunDirectoryError(\n'
      "      f'cannot use",
      '  except ZeroDivisionError as error:\n    raise errors.RunDirectoryError(\n'  # noqa: E501
      "      f'cannot use",
    ),
  ),
  *_guards(
    'disks_test.py',
    (
      'predictions_on_a_full_disk_go_on_when_there_is_room',
      'a full disk is an error of ours',
      'platform/jsonl.py',
      '  with files.convert_os_errors(path):\n    files.disk.append(',
      '  if True:\n    disk.append(',
    ),
    (
      'a_save_that_fails_beside_training_ends_the_run',
      'a failed save ends the run',
      'checkpoint/checkpointer.py',
      _KEPT_FAILURE,
      '      return\n',
    ),
    (
      'saves_may_fail_for_a_while',
      'some saves may fail',
      'checkpoint/checkpointer.py',
      'if self._failures <= self._max_failures and not last:',
      'if False:',
    ),
    (
      'a_disk_that_fills_up_ends_the_run_and_the_next_goes_on',
      'a save that finds no room ends the run',
      'checkpoint/checkpointer.py',
      _KEPT_FAILURE,
      '      return\n',
    ),
    (
      'a_disk_that_is_too_small_is_said_before_step_1',
      'free space is looked at',
      'checkpoint/checkpointer.py',
      'if size * missing > free:',
      'if False:',
    ),
    (
      'a_directory_that_may_not_be_written_is_said_before_step_1',
      'a directory is tried',
      'platform/files.py',
      "      disk.write(probe, b'')\n",
      '      pass\n',
    ),
    (
      'a_model_dir_in_memory_is_as_good',
      'what is renamed lies on the same disk',
      'platform/files.py',
      _STAGED,
      "staged = pathlib.Path('/tmp', f'{STAGING}{uuid.uuid4().hex}')",
    ),
    (
      'an_object_store_is_refused[gs://bucket/run]',
      'an address is no directory',
      'platform/files.py',
      'if _ADDRESS.match(text):',
      'if False:',
    ),
    (
      'summaries_that_cannot_be_written_cost_no_step',
      'summaries are forgiven',
      'platform/best_effort.py',
      'except self._kinds as error:',
      'except ZeroDivisionError as error:',
    ),
  ),
  *_guards(
    'restores_test.py',
    (
      'a_killed_run_goes_on_as_if_it_had_not_been',
      'the state of dropouts is saved',
      'interop/tracking.py',
      'self.seeds += [g for g in generators if id(g) not in known]',
      'self.saved = {}',
    ),
    (
      'a_rotten_state_file_is_not_believed[garbled]',
      'the newest is found by listing',
      'checkpoint/format.py',
      'names = [path.name for path in directory.iterdir()]',
      "names = (directory / 'checkpoint').read_text().split('\"')[1].split('/')",  # noqa: E501
    ),
    (
      'a_damaged_checkpoint_is_passed_over[data flipped]',
      'damage is passed over',
      'checkpoint/format.py',
      'DAMAGED = (OSError, ValueError, KeyError, IndexError, tf.errors.OpError)',  # noqa: E501
      'DAMAGED = (ZeroDivisionError,)',
    ),
    (
      'a_run_whose_checkpoints_are_all_damaged_is_refused',
      'no start from step 0 beside damaged checkpoints',
      'checkpoint/checkpointer.py',
      'if causes and step is None:',
      'if False:',
    ),
    (
      'a_run_that_is_not_the_same_any_more_is_refused[another optimizer]',
      'what a checkpoint says is compared',
      'checkpoint/checkpointer.py',
      '    self._check(path, manifest)\n',
      '',
    ),
    (
      'another_number_of_replicas_goes_on_at_the_same_example',
      'gradients of the replicas are added up',
      'step/gradients.py',
      '[*tf.nest.flatten(groups), tf.stack(flat)],',
      '[*(3.0 * g for g in tf.nest.flatten(groups)), tf.stack(flat)],',
    ),
    (
      'wrong_clocks_change_nothing',
      'event files are named in their order',
      'platform/files.py',
      'if path.name <= last:',
      'if False:',
    ),
    (
      'a_second_trainer_is_refused_until_the_first_is_dead',
      'one trainer for a directory',
      'platform/lock.py',
      'fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)',
      'pass',
    ),
    (
      'a_finished_run_is_left_alone',
      'a finished run is seen',
      'experiment/run.py',
      '    if self._is_done():\n',
      '    if False:\n',
    ),
  ),
  *_guards(
    'stops_test.py',
    (
      'a_signal_in_a_step_is_obeyed_within_a_long_block',
      'a stop is seen within a block',
      'train/inner_loop.py',
      'well & (counters.stop.read_value() == counters_lib.RUN)',
      'well',
    ),
    (
      'a_signal_in_a_save_lets_it_end[SIGTERM-143]',
      'a signal ends nothing at once',
      'platform/signals.py',
      '      ask(name)\n',
      '      os._exit(128 + signum)\n',
    ),
    (
      'a_signal_in_an_evaluation_leaves_it_to_the_next_life',
      'a stop is seen within an evaluation',
      'train/inner_loop.py',
      'return (done < n) & (counters.stop.read_value() < counters_lib.STOP)',
      'return done < n',
    ),
    (
      'a_signal_in_an_export_leaves_it_to_the_next_life',
      'a stop is seen within an export',
      'experiment/run.py',
      "with stopper.interrupting(), self.trainer.ledger.part('export'):",
      "with self.trainer.ledger.part('export'):",
    ),
    (
      'a_signal_in_an_export_on_the_way_is_obeyed_too',
      'an export on the way may be left',
      'experiment/run.py',
      '        self._exporter.interrupting = stopper.interrupting\n',
      '',
    ),
    (
      'a_second_interrupt_aborts_at_once_and_commits_no_half',
      'a second interrupt aborts',
      'platform/signals.py',
      'if interrupts > 1:',
      'if interrupts > 99:',
    ),
    (
      'signals_and_the_exit_code_may_be_a_schedulers',
      'the exit code is what was asked for',
      'launch/_modes.py',
      'return code if wanted is None else int(wanted)',
      'return code',
    ),
    (
      'a_run_out_of_time_is_resumed',
      'the deadline is watched',
      'platform/signals.py',
      '      timer.start()\n',
      '',
    ),
    (
      'an_action_that_raises_costs_no_step',
      'an error saves first',
      'train/trainer.py',
      '      self._save_after(error, actions)\n',
      '      del error\n',
    ),
  ),
  *_guards(
    'steps_test.py',
    (
      'what_is_not_finite_ends_the_run_at_its_step[nan_loss-loss nan]',
      'a step that is not finite changes nothing',
      'step/gradients.py',
      'finite: tf.Tensor = tf.math.is_finite(self.loss + self.norm)',
      'finite: tf.Tensor = tf.math.is_finite(self.loss) | True',
    ),
    (
      'a_step_may_be_left_out[nan_gradient]',
      'so many steps may be left out',
      'train/inner_loop.py',
      'skipped |= ~step.finite & (in_a_row <= limit)',
      'pass',
    ),
    (
      'a_run_that_goes_back_ends_alike_however_often_it_is_killed',
      'what was passed over stays so',
      'train/_skipped_steps.py',
      "self.parts = tuple((first, last) for first, last in facts['passed_over'])",  # noqa: E501
      'self.parts = ()',
    ),
    (
      'the_last_finite_checkpoint_outlives_those_that_are_not',
      'the last finite checkpoint is kept',
      'checkpoint/retention.py',
      'kept = {*steps[-self.last :], *finite[-1:]}',
      'kept = {*steps[-self.last :]}',
    ),
    (
      'a_step_that_needs_more_memory_than_there_is',
      'a lack of memory is explained',
      'step/error_messages.py',
      'except tf.errors.ResourceExhaustedError as error:',
      'except ZeroDivisionError as error:',
    ),
    (
      'a_metric_that_is_huge_or_nan_harms_nobody[nan]',
      'lines are strict JSON',
      'platform/jsonl.py',
      'if isinstance(value, float) and not math.isfinite(value)',
      'if False',
    ),
    (
      'a_metric_that_is_none_is_named_before_step_1',
      'metrics have one entry per example',
      'step/loss.py',
      'if values.shape.rank and expected not in (None, values.shape[0]):',
      'if False:',
    ),
    (
      'batches_of_any_size_in_blocks_of_any_length_are_traced_once',
      'the length of a block is a tensor',
      'train/trainer.py',
      'n = tf.constant(until - before, tf.int64)',
      'n = until - before',
    ),
  ),
  *_guards(
    'feeds_test.py',
    (
      'a_flipped_byte_is_named',
      'who reads is asked what was wrong',
      'data/sources/tfrecord.py',
      '      if damages and not self.lost:\n',
      '      if False:\n',
    ),
    (
      'a_file_cut_short_anywhere_is_an_error[False-5]',
      'a file ends where its last record does',
      'data/sources/tfrecord_io.py',
      '  if end == size:\n',
      '  if True:\n',
    ),
    (
      'files_of_another_kind_are_named',
      'the first header is checked',
      'data/sources/tfrecord_io.py',
      '  if _is_header(begin):\n    return',
      '  if True:\n    return',
    ),
    (
      'a_record_of_another_shape_is_named',
      'records are compared with what they should hold',
      'data/sources/tfrecord.py',
      '        if wrong:\n          return',
      '        if False:\n          return',
    ),
    (
      'files_that_are_not_there_are_said_before_step_1',
      'a pattern must match',
      'data/sources/file_source.py',
      '    if not matches:\n',
      '    if False:\n',
    ),
    (
      'a_filter_that_drops_everything_is_said_before_step_1',
      'a filter must keep something',
      'data/example_pipeline.py',
      'if next(iter(kept), None) is None:',
      'if False:',
    ),
    (
      'data_that_ends_ends_the_run_at_its_step',
      'the end of the data is known',
      'train/trainer.py',
      'return steps if ends is None else min(steps, ends)',
      'return steps',
    ),
    (
      'data_whose_position_cannot_be_saved_is_refused_before_step_1',
      'whether data can go on is tried',
      'experiment/experiment.py',
      '    data.check_resumable()\n',
      '',
    ),
    (
      'files_that_changed_between_two_lives_are_refused[one more]',
      'files are part of what a run is',
      'data/sources/file_source.py',
      "'files': [[os.path.basename(f.path), f.records] for f in self.files],",
      "'files': [],",
    ),
    (
      'a_window_of_large_rows_takes_no_more_than_its_budget',
      'a window has a budget',
      'data/example_pipeline.py',
      'window = max(1, min(_WINDOW, int(fitting)))',
      'window = _WINDOW',
    ),
  ),
  *_guards(
    'observers_test.py',
    (
      'an_evaluator_outlives_the_removal_of_what_it_reads',
      'what is gone is not damaged',
      'checkpoint/checkpointer.py',
      '    if path.exists():\n      raise\n',
      '    raise\n',
    ),
    (
      'an_evaluator_whose_trainer_was_killed_gives_up',
      'an evaluator does not wait for good',
      'experiment/_continuous_eval.py',
      'elif time.monotonic() - alive > self._timeout:',
      'elif False:',
    ),
    (
      'a_killed_evaluator_goes_on_where_it_was',
      'what is evaluated is not evaluated again',
      'experiment/_continuous_eval.py',
      '    return done\n',
      '    return set()\n',
    ),
    (
      'a_signal_stops_an_evaluator_and_the_same_command_goes_on',
      'an evaluator listens to the signals that were asked for',
      'experiment/_continuous_eval.py',
      'self._request_stop, stop=self._stop_signals\n',
      'self._request_stop\n',
    ),
    (
      'the_best_checkpoint_is_what_is_evaluated_and_exported',
      'the best one comes first',
      'checkpoint/retention.py',
      'return [s for _, s in sorted(scored, key=lambda one: -one[0])]',
      'return [s for _, s in sorted(scored, key=lambda one: one[0])]',
    ),
    (
      'each_step_is_on_the_charts_once_whatever_was_killed',
      'TensorBoard is told that a life begins',
      'summary/summary_writer.py',
      '        _write_session_start(directory, self._first_step)\n',
      '        pass\n',
    ),
    (
      'summaries_that_are_removed_cost_no_step',
      'a line of metrics goes to its own file',
      'summary/metrics_file.py',
      'path = files.run_directory(model_dir) / name',
      "path = files.run_directory(model_dir) / 'train' / name",
    ),
  ),
  *_guards(
    'tests/evaluation/predictor_test.py',
    (
      'killed_at_any_instant_it_ends_the_same[.jsonl]',
      'lines that are there are counted',
      'evaluation/_prediction_files.py',
      'self.count = jsonl.cut_partial_line(self._path)',
      'self.count = 0',
    ),
  ),
  *_guards(
    'tests/integration/workers_test.py',
    (
      'who_is_left_behind_ends_and_says_why[other]',
      'what TensorFlow says of a dead worker is one line',
      'distribute/coordinator.py',
      'if not _GONE.search(text):',
      'if True:',
    ),
    (
      'a_stop_of_one_stops_all_at_one_step[other]',
      'a stop is agreed upon',
      'distribute/coordinator.py',
      'tf.stack([asked >= 1, asked >= 2, ended])',
      'tf.stack([asked >= 1, asked >= 3, ended])',
    ),
    (
      'workers_that_differ_are_refused[Experiment.seed=3-seed, configuration]',
      'facts are compared',
      'distribute/coordinator.py',
      'if here != chief',
      'if False',
    ),
  ),
  *_guards(
    'tests/integration/replica_runs_test.py',
    (
      'infinities_on_one_replica_skip_the_step_on_both[mixed_float16]',
      'a scale is lowered by half',
      'step/_loss_scale.py',
      'self._scale.assign(tf.where(finite, grown, lowered))',
      'self._scale.assign(tf.where(finite, grown, lowered / 2.0))',
    ),
  ),
  *_guards(
    'tests/distribute/rendezvous_test.py',
    (
      'a_worker_that_never_comes_is_one_line[0]',
      'workers meet before TensorFlow waits',
      'distribute/strategy.py',
      '  _rendezvous.wait(cluster)\n',
      '',
    ),
    (
      'a_worker_that_dies_once_all_have_met_is_one_line[0]',
      'who connects is watched over',
      'distribute/_rendezvous.py',
      '    os.kill(parent, signal.SIGKILL)\n',
      '    pass\n',
    ),
  ),
  *_guards(
    'tests/distribute/tpu_test.py',
    (
      'a_tpu_that_says_nothing_is_one_line[True]',
      'a TPU is waited for so long',
      'platform/timeouts.py',
      'thread.join(seconds)',
      'thread.join()',
    ),
  ),
  *_guards(
    'tests/data/data_service_test.py',
    (
      'training_goes_on_whoever_of_a_service_dies',
      'each batch of a service is taken once',
      'data/_data_service.py',
      'return _each_once(served)',
      'return served.map(lambda _, batch: batch)',
    ),
    (
      'a_dispatcher_without_a_worker_is_an_error_in_time',
      'a worker of a service is tried',
      'data/_data_service.py',
      '  _try_worker(address)\n',
      '',
    ),
  ),
  *_guards(
    'tests/integration/worker_failures_test.py',
    (
      'the_chief_dies_within_a_save_and_nothing_is_lost',
      'the chief gives its state to the others',
      'experiment/run.py',
      'self.trainer.workers.share(self.trainer)',
      'pass',
    ),
    (
      'started_again_after_a_kill_it_ends_as_if_nothing_had_been',
      'all are started again',
      'distribute/local_launcher.py',
      'for attempt in range(max_restarts + 1):',
      'for attempt in range(1):',
    ),
    (
      'killed_again_and_again_wherever_they_are_they_end_as_never_killed',
      'as often as was allowed',
      'distribute/local_launcher.py',
      'if not failed or hopeless or attempt == max_restarts:',
      'if not failed or hopeless or attempt == 1:',
    ),
    (
      'what_fails_on_the_chief_ends_all',
      'the others hear that the chief failed',
      'distribute/coordinator.py',
      'code[0], failed)',
      'code[0], False)',
    ),
  ),
  *_guards(
    'tests/integration/worker_data_test.py',
    (
      'other_data_are_refused[its data-True]',
      'fingerprints of the data are compared',
      'actions/digests.py',
      'team.check_same({what: facts, f',
      'team.check_same({f',
    ),
    (
      'data_that_end_for_one_end_for_all[(25, 33)-False]',
      'the end of the data is agreed upon',
      'distribute/coordinator.py',
      'return heard[2]',
      'return ended',
    ),
    (
      'data_that_break_on_one_worker_end_all',
      'who is left behind ends with one line',
      'distribute/coordinator.py',
      'if not _GONE.search(text):',
      'if True:',
    ),
  ),
  *_guards(
    'configs_test.py',
    (
      'a_gin_file_that_is_none_is_one_line[a bracket left open]',
      'what gin says is explained',
      'config/gin_files.py',
      '    tokenize.TokenError,\n',
      '',
    ),
    (
      'a_gin_file_that_is_none_is_one_line[a text for a number]',
      'types are compared',
      'config/validator.py',
      'if not parameter.fits(value):',
      'if False:',
    ),
    (
      'names_that_leave_the_run_are_refused[../x]',
      'a name is looked at',
      'platform/files.py',
      'if not isinstance(name, str) or not _NAME.fullmatch(name):',
      'if False:',
    ),
    (
      'secrets_are_not_in_what_is_written',
      'the command line is redacted',
      'experiment/run.py',
      "'argv': redaction.redacted_argv(sys.argv),",
      "'argv': sys.argv,",
    ),
  ),
)  # fmt: skip
