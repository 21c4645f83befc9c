"""A run in a real browser: TensorBoard and the page of a sweep."""

import pathlib
import re
import shutil

import pytest

pytest.importorskip('selenium', reason='no selenium: scripts/browser --install')

from tests.support import headless_browser
from tests.support import sweep_commands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RATES = {'fast': 0.003, 'slow': 0.0003}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """(directory, name -> last values) of two finished runs."""
  directory = tmp_path_factory.mktemp('runs')
  return directory, {
    name: headless_browser.train(directory, name, rate)
    for name, rate in RATES.items()
  }


@pytest.fixture(scope='module', params=['one', 'both'])
def seen(request, runs):
  """A page of TensorBoard on one run, or on the directory above."""
  programs = [shutil.which(name) for name in ('chromium', 'chromedriver')]
  if None in programs:
    pytest.skip('no chromium or chromedriver: scripts/browser --install')
  directory, values = runs
  logdir = directory / 'fast' if request.param == 'one' else directory
  prefix = '' if request.param == 'one' else 'fast/'
  with (
    headless_browser.tensorboard(logdir) as url,
    headless_browser.browser(url, *programs) as page,
  ):
    yield page, prefix, values


def card_of(page, tag):
  """The card of a tag on the Time Series page, once its table is there."""

  def found():
    for card in page.find('card-view'):
      lines = page.text(card).splitlines()
      if tag in lines and 'Smoothed' in lines:
        return lines
    return None

  return page.until(found, f'the card of {tag}')


def last_value(lines, run):
  """(value, step) of a run in the table below a chart."""
  at = lines.index(run)
  smoothed, value, step = lines[at + 1 : at + 4]
  assert float(smoothed) > 0
  return float(value), int(step)


@pytest.mark.parametrize('tag', ['accuracy', 'loss'])
def test_training_and_evaluation_are_on_one_chart(seen, tag):
  page, prefix, values = seen
  page.show('timeseries', tag)
  lines = card_of(page, tag)
  for source in ('train', 'eval/test'):
    value, step = last_value(lines, f'{prefix}{source}')
    assert step == 200
    assert value == pytest.approx(values['fast'][f'{source}/{tag}'], rel=1e-3)


def test_digits_can_be_looked_at(seen):
  page, _, _ = seen
  page.show('images')
  page.until_text('tag:\nwrong', 'sample: 1 of ', 'step\n200')

  def drawn():
    sizes = [
      page.driver.execute_script('return arguments[0].naturalWidth', image)
      for image in page.find('img')
    ]
    return 64 in sizes

  page.until(drawn, 'an image of 64 pixels')


def test_texts_can_be_read(seen):
  page, _, _ = seen
  page.show('text')
  # Of the categories only the first are unfolded.
  page.until_text(
    'Adam.learning_rate = 0.003', 'confusion', 'label\n0\n1\n2', 'parameters'
  )


def test_layers_are_drawn(seen):
  page, _, _ = seen
  page.show('graphs')
  text = page.until_text('Op graph', 'model')
  assert 'Graph visualization failed' not in text
  page.until(lambda: page.find('g.node'), 'a node')


def test_weights_have_histograms(seen):
  page, _, _ = seen
  page.show('histograms')
  page.until_text('weights/model/sequential/dense/kernel')


def test_the_hparams_tab_has_a_row_for_each_run(seen):
  page, prefix, values = seen
  page.show('hparams')
  text = page.until_text('Trial ID', 'Adam.learning_rate', '/fast')
  assert '0.0030000' in text
  if prefix:  # else TensorBoard finds no metrics; see docs/seeing.md
    wanted = values['fast']['eval/test/accuracy'], '/slow', '0.00030000'
    page.until_text(*(_as_shown(value) for value in wanted))


def _as_shown(value):
  """As the table has it: five digits."""
  return value if isinstance(value, str) else f'{value:.5g}'


def test_a_page_without_the_run_is_found_out(seen, tmp_path):
  """The checks above can fail: an empty TensorBoard passes none of them."""
  page, _, values = seen
  with headless_browser.tensorboard(tmp_path) as url:
    empty = headless_browser.Page(page.driver, url)
    empty.show('')
    text = empty.until_text('No dashboards are active')
    assert not re.search(f'{values["fast"]["eval/test/accuracy"]:.4f}', text)
    assert not pathlib.Path(tmp_path, 'train').exists()


@pytest.fixture(scope='module')
def page_of_a_sweep(tmp_path_factory):
  """results.html of a finished sweep, from the disk."""
  pytest.importorskip('plotly', reason='no plotly: pip install plotly')
  programs = [shutil.which(name) for name in ('chromium', 'chromedriver')]
  if None in programs:
    pytest.skip('no chromium or chromedriver: scripts/browser --install')
  sweep_dir = sweep_commands.plan(
    tmp_path_factory.mktemp('sweep'),
    "Sweep.space = {'LR': [0.01, 0.25, 0.1, 2e-4], 'KIND': ['a', 'b']}\n",
  )
  for command in (['run', '--parallel=2'], ['report']):
    code, _, err = sweep_commands.sweep(*command, f'--sweep_dir={sweep_dir}')
    assert code == 0, err
  with headless_browser.browser('', *programs) as page:
    page.driver.get(f'file://{sweep_dir / "results.html"}')
    yield page


def column(page, name):
  """The cells of a column, from top to bottom."""
  heads = [head.text.split()[0] for head in page.find('th')]
  cells = f'td:nth-child({heads.index(name) + 1})'
  return [cell.text for cell in page.find(cells)]


def click(page, name):
  (head,) = (h for h in page.find('th') if h.text.split()[0] == name)
  head.click()


def test_a_click_on_a_heading_sorts_the_sweep(page_of_a_sweep):
  page = page_of_a_sweep
  assert column(page, 'rank') == [str(rank) for rank in range(1, 9)]
  assert column(page, 'LR')[:2] == ['0.25', '0.25']
  click(page, 'LR')
  rates = ['0.0002', '0.01', '0.1', '0.25']
  assert column(page, 'LR') == [rate for rate in rates for _ in range(2)]
  click(page, 'LR')
  assert column(page, 'LR')[0] == '0.25'
  click(page, 'KIND')
  assert column(page, 'KIND') == ['a'] * 4 + ['b'] * 4


def test_a_sweep_is_drawn(page_of_a_sweep):
  page = page_of_a_sweep
  text = page.until_text(
    'Best: LR = 0.25',
    'All parameters at once',
    'eval/test/accuracy against LR',
    'eval/test/accuracy against KIND',
    'Learning curves',
    '0000_LR=0.01_KIND=a (done)',
  )
  assert 'WebGL is not supported' not in text
  assert len(page.find('.parcoords')) == 1
  points = page.find('.scatterlayer .point')
  # Eight in each of two scatter plots, and four steps of eight curves.
  assert len(points) == 2 * 8 + 8 * 4
  widths = page.driver.execute_script(
    'return [...document.querySelectorAll(".js-plotly-plot")]'
    '.map(plot => plot.getBoundingClientRect().width)'
  )
  assert all(width > 600 for width in widths)
