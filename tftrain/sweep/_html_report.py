"""HTML report of a sweep: results.html, one self-contained page."""

from collections.abc import Iterator
from collections.abc import Sequence
import html
import math
from typing import Any

from plotly import graph_objects
import plotly.io
import plotly.offline

from tftrain.platform import literals
from tftrain.sweep import _importance
from tftrain.sweep import _ranking
from tftrain.sweep import plan as plan_lib

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .25rem .7rem; text-align: left;
  border-bottom: 1px solid #ddd; }
th { cursor: pointer; user-select: none; white-space: nowrap; }
th::after { content: ' \\2195'; color: #aaa; }
td { font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
"""

# A click on a heading sorts by its column; a second click reverses the order.
_SORT = """
document.querySelectorAll('th').forEach((head, column) => {
  head.addEventListener('click', () => {
    const body = head.closest('table').tBodies[0];
    const down = head.dataset.down = head.dataset.down === '1' ? '0' : '1';
    const key = row => row.cells[column].dataset.value;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down === '1' ? order : -order;
    };
    [...body.rows].sort(compare).forEach(row => body.append(row));
  });
});
"""

_WIDE = 100  # max/min ratio from which an axis is logarithmic


def page(plan: plan_lib.Plan, rows: Sequence[_ranking.Row], best: str) -> str:
  """Returns the HTML page of a sweep.

  Args:
    plan: The plan of the sweep.
    rows: The ranked assignments, best first.
    best: One line about the best assignment.
  """
  title = html.escape(plan.sweep_dir.name)
  parts = [
    '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
    f'<title>{title}</title><style>{_STYLE}</style>',
    f'<script>{plotly.offline.get_plotlyjs()}</script></head><body>',
    f'<h1>{title}</h1><p>{html.escape(best)}</p>',
    f'<div class="scroll">{_table(plan, rows)}</div>',
  ]
  for heading, figure in _figures(plan, rows):
    figure.update_layout(template='plotly_white')
    drawn = plotly.io.to_html(figure, full_html=False, include_plotlyjs=False)
    parts.append(f'<h2>{html.escape(heading)}</h2>{drawn}')
  parts.append(f'<script>{_SORT}</script></body></html>')
  return '\n'.join(parts)


def _table(plan: plan_lib.Plan, rows: Sequence[_ranking.Row]) -> str:
  varied = _ranking.names(rows)
  heads = ['rank', plan.metric, '±', *varied, 'status', 'steps', 'seconds']
  lines = []
  for rank, row in enumerate(rows, 1):
    mean = row.mean
    cells: list[tuple[Any, str]] = [
      (rank, str(rank)),
      ('' if mean is None else mean, '' if mean is None else f'{mean:.6g}'),
      (row.deviation, f'{row.deviation:.2g}' if len(row.repeats) > 1 else ''),
    ]
    cells += [(v, str(v)) for v in (row.values.get(n, '') for n in varied)]
    steps = max(result.step for result in row.repeats)
    cells += [
      (row.status, row.status),
      (steps, f'{steps:,}'),
      (row.seconds, f'{row.seconds:.0f}'),
    ]
    lines.append(
      '<tr>' + ''.join(_html_cell(*cell) for cell in cells) + '</tr>'
    )
  head = ''.join(f'<th>{html.escape(name)}</th>' for name in heads)
  return (
    f'<table><thead><tr>{head}</tr></thead><tbody>'
    f'{"".join(lines)}</tbody></table>'
  )


def _html_cell(value: Any, shown: str) -> str:
  key = html.escape(str(value))
  return f'<td data-value="{key}">{html.escape(shown)}</td>'


def _figures(
  plan: plan_lib.Plan, rows: Sequence[_ranking.Row]
) -> Iterator[tuple[str, Any]]:
  """Yields (heading, figure) of each plot that has enough data."""
  told = [r for r in rows if r.mean is not None and math.isfinite(r.mean)]
  varied = _ranking.names(told)
  if told and varied:
    yield 'All parameters at once', _parallel(plan, told, varied)
    for name in varied:
      yield f'{plan.metric} against {name}', _against(plan, told, name)
  curves = [r for row in rows for r in row.repeats if r.history]
  if curves:
    yield 'Learning curves', _curves(plan, curves)
  weights = _importance.of(told, varied, plan.goal)
  if weights:
    yield 'Importance of the parameters', _bars(weights)


def _parallel(
  plan: plan_lib.Plan, rows: Sequence[_ranking.Row], varied: Sequence[str]
) -> Any:
  means = [row.mean for row in rows]
  axes = [
    _axis(name, [row.values.get(name) for row in rows]) for name in varied
  ]
  axes.append({'label': plan.metric, 'values': means})
  figure = graph_objects.Figure(
    graph_objects.Parcoords(
      dimensions=axes,
      line={
        'color': means,
        'colorscale': 'Viridis',
        'reversescale': plan.goal == 'max',  # dark is best
        'showscale': True,
      },
    )
  )
  return figure.update_layout(height=380, margin={'t': 60, 'b': 30})


def _axis(name: str, values: Sequence[literals.Value | None]) -> dict[str, Any]:
  """Returns a numeric axis, or a categorical one in order of occurrence."""
  numbers = _as_numbers(values)
  if numbers is None:
    kinds = list(dict.fromkeys(_category_label(value) for value in values))
    return {
      'label': name,
      'values': [kinds.index(_category_label(value)) for value in values],
      'tickvals': list(range(len(kinds))),
      'ticktext': kinds,
    }
  if not _is_wide(numbers):
    return {'label': name, 'values': numbers}
  ticks = sorted(set(numbers))[:: max(1, len(set(numbers)) // 8)]
  return {
    'label': name,
    'values': [math.log10(number) for number in numbers],
    'tickvals': [math.log10(tick) for tick in ticks],
    'ticktext': [f'{tick:g}' for tick in ticks],
  }


def _against(
  plan: plan_lib.Plan, rows: Sequence[_ranking.Row], name: str
) -> Any:
  having = [row for row in rows if name in row.values]
  values = [row.values[name] for row in having]
  numbers = _as_numbers(values)
  figure = graph_objects.Figure(
    graph_objects.Scatter(
      x=[_category_label(value) for value in values]
      if numbers is None
      else numbers,
      y=[row.mean for row in having],
      error_y={'array': [row.deviation for row in having]},
      text=[row.repeats[0].directory.name for row in having],
      mode='markers',
      marker={'size': 9},
    )
  )
  wide = numbers is not None and _is_wide(numbers)
  figure.update_xaxes(
    title=name, type='log' if wide else None, exponentformat='power'
  )
  figure.update_yaxes(title=plan.metric)
  return figure.update_layout(height=360, margin={'t': 20})


def _curves(plan: plan_lib.Plan, found: Sequence[Any]) -> Any:
  figure = graph_objects.Figure()
  for result in found:
    figure.add_scatter(
      x=[step for step, _ in result.history],
      y=[value for _, value in result.history],
      name=f'{result.directory.name} ({result.status})',
      mode='lines+markers' if len(result.history) < 30 else 'lines',
      line={'dash': 'dot' if result.status == 'pruned' else 'solid'},
    )
  figure.update_xaxes(title='step')
  figure.update_yaxes(title=plan.metric)
  return figure.update_layout(height=480, margin={'t': 20})


def _bars(weights: dict[str, float]) -> Any:
  names = sorted(weights, key=lambda name: weights[name])
  figure = graph_objects.Figure(
    graph_objects.Bar(
      x=[weights[name] for name in names], y=names, orientation='h'
    )
  )
  height = 120 + 40 * len(names)
  return figure.update_layout(height=height, margin={'t': 20, 'l': 200})


def _as_numbers(
  values: Sequence[literals.Value | None],
) -> list[float] | None:
  """Returns the values as floats; None if any of them is not a number."""
  if not all(type(value) in (int, float) for value in values):
    return None
  return [float(value) for value in values if value is not None]


def _is_wide(numbers: Sequence[float]) -> bool:
  return min(numbers) > 0 and max(numbers) / min(numbers) >= _WIDE


def _category_label(value: literals.Value | None) -> str:
  return 'not set' if value is None else str(value)
