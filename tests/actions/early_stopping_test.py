"""EarlyStopping: its patience."""

from tests.support import small_tasks
import tftrain


def test_early_stopping_waits_for_its_patience():
  stop = tftrain.EarlyStopping('eval/test/loss', patience=2)
  values = [3.0, 2.0, 2.5, 2.1, 1.0]
  signals = []
  for step, value in enumerate(values):
    report = small_tasks.report(
      step, source='eval/test', last_step=9, scalars={'loss': value}
    )
    signals.append(stop(report))
  assert signals == [None, None, None, tftrain.Signal.STOP, None]
