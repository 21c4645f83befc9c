"""A bar chart of the ratios that benchmarks/steps.py measures."""

from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Any


def draw(
  reports: Mapping[str, Mapping[str, Any]], bases: Sequence[str], path: str
) -> None:
  """Writes a PNG file: a row of panels per model, a panel per base.

  A bar is the median over the rounds of a contestant's time divided by that of
  the base; its line is the range.

  Args:
    reports: Model -> its numbers, as `steps.run_model` returns them.
    bases: The contestants that ratios are taken to.
    path: The file.
  """
  # Imported here, as the benchmark runs without it.
  from matplotlib import figure as figure_lib

  models = {name: r for name, r in reports.items() if r['contestants']}
  if not models:
    return
  heights = [0.8 + 0.22 * len(r['contestants']) for r in models.values()]
  figure = figure_lib.Figure(
    (6 * len(bases), sum(heights)), layout='constrained'
  )
  rows = figure.subplots(
    len(models), len(bases), squeeze=False, height_ratios=heights
  )
  for row, (model, report) in zip(rows, models.items(), strict=True):
    for axes, base in zip(row, bases, strict=True):
      if base in report['contestants']:
        _draw_panel(axes, report['contestants'], base)
        axes.set_title(f'{model}: step time / {base}', fontsize=10)
      else:
        axes.set_axis_off()
  figure.savefig(path, dpi=120)


def _draw_panel(
  axes: Any, contestants: Mapping[str, Mapping[str, Any]], base: str
) -> None:
  """Draws the ratios of all contestants of a model to one of them."""
  under = contestants[base]['rounds']
  for place, (name, found) in enumerate(contestants.items()):
    ratios = [a / b for a, b in zip(found['rounds'], under, strict=True)]
    middle = statistics.median(ratios)
    color = 'tab:blue' if name.startswith('tftrain') else 'tab:gray'
    axes.barh(place, middle, color=color)
    axes.plot([min(ratios), max(ratios)], [place, place], color='black', lw=1)
    axes.annotate(
      f'{middle:.2f}',
      (max(middle, *ratios), place),
      xytext=(4, 0),
      textcoords='offset points',
      va='center',
      fontsize=8,
    )
  axes.axvline(1, color='black', lw=0.5)
  axes.set_yticks(range(len(contestants)), list(contestants), fontsize=8)
  axes.invert_yaxis()
  axes.margins(x=0.12)
  axes.tick_params(axis='x', labelsize=8)
  axes.spines[['top', 'right']].set_visible(False)
