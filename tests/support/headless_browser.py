"""TensorBoard in a headless Chromium: a run as a person sees it.

`python -m tests.support.headless_browser docs/images` makes the pictures of the
documentation.
"""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome import options as chrome
from selenium.webdriver.chrome import service
import tensorflow as tf

from examples import digits
import tftrain

_LIMIT = 30  # seconds; what takes longer never comes

# All that can be read on a page, in the order in which it is written down.
# Most of TensorBoard lies in shadow roots, of which `innerText` knows nothing.
_TEXT = """
  const parts = [];
  const visit = (node) => {
    if (['STYLE', 'SCRIPT', 'NOSCRIPT'].includes(node.nodeName)) return;
    if (node.nodeType === Node.TEXT_NODE) parts.push(node.textContent.trim());
    if (node.shadowRoot) visit(node.shadowRoot);
    if (node.contentDocument) visit(node.contentDocument.body);  // an iframe
    node.childNodes.forEach(visit);
  };
  visit(arguments[0] || document.body);
  return parts.filter(part => part).join('\\n');
"""
_FIND = """
  const [selector] = arguments, found = [];
  const visit = (node) => {
    if (node.matches && node.matches(selector)) found.push(node);
    if (node.shadowRoot) visit(node.shadowRoot);
    if (node.contentDocument) visit(node.contentDocument.body);
    node.childNodes.forEach(visit);
  };
  visit(document.body);
  return found;
"""


class Page:
  """One page of TensorBoard."""

  def __init__(self, driver, url):
    self.driver = driver
    self._url = url

  def show(self, tab, tag=''):
    """Opens a tab; Time Series with a tag only that, as others are folded."""
    query = f'?tagFilter=%5E{tag}%24' if tag else ''
    self.driver.get('about:blank')  # else another #tab loads nothing
    self.driver.get(f'{self._url}{query}#{tab}')

  def text(self, element=None):
    return self.driver.execute_script(_TEXT, element)

  def find(self, selector):
    """Elements, those in shadow roots too."""
    return self.driver.execute_script(_FIND, selector)

  def until(self, found, what):
    """What `found()` returns once it is something."""
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
      if value := found():
        return value
      time.sleep(0.2)
    raise AssertionError(f'{what} never came; there is\n{self.text()}')

  def until_text(self, *wanted):
    def seen():
      text = self.text()
      return text if all(one in text for one in wanted) else None

    return self.until(seen, f'{wanted}')


@contextlib.contextmanager
def tensorboard(logdir):
  """The address of a TensorBoard on the loopback, on a free port."""
  command = [sys.executable, '-m', 'tensorboard.main', '--logdir', str(logdir)]
  command += ['--host', '127.0.0.1', '--port', '0', '--load_fast', 'false']
  with (
    tempfile.TemporaryFile('w+') as said,
    subprocess.Popen(
      command, stdout=said, stderr=said, env={**os.environ, 'BROWSER': 'true'}
    ) as process,
  ):
    try:
      yield _address(process, said)
    finally:
      process.terminate()


def _address(process, said):
  deadline = time.monotonic() + _LIMIT
  while time.monotonic() < deadline and process.poll() is None:
    said.seek(0)
    if found := re.search(r'http://127\.0\.0\.1:\d+/', said.read()):
      return found[0]
    time.sleep(0.1)
  said.seek(0)
  raise AssertionError(f'TensorBoard did not start:\n{said.read()}')


@contextlib.contextmanager
def browser(url, browser_path, driver_path):
  """A headless Chromium that shows a TensorBoard."""
  options = chrome.Options()
  options.binary_location = browser_path
  for argument in (
    '--headless=new',
    '--no-sandbox',  # Chromium refuses to have one where root runs it
    '--disable-dev-shm-usage',
    '--window-size=1400,1000',
    '--force-color-profile=srgb',
  ):
    options.add_argument(argument)
  driver = webdriver.Chrome(options, service.Service(driver_path))
  try:
    yield Page(driver, url)
  finally:
    driver.quit()


class Digits(tftrain.SupervisedTask):
  """Shows digits that it gets wrong."""

  def artifacts(self, batch):
    images, labels = batch  # [batch, 64], [batch]
    answers = tf.argmax(self.model(images, training=False), axis=-1)
    wrong = np.flatnonzero(answers != labels)[:6]
    pictures = tf.reshape(tf.gather(images, wrong), [-1, 8, 8, 1])
    return {
      'wrong': tf.image.resize(pictures, [64, 64], 'nearest'),
      'confusion': tftrain.summary.confusion_matrix(labels, answers, range(10)),
    }


def train(logdir, name, learning_rate, steps=200):
  """A small run on real digits; returns its last values."""

  def make_task():
    layers = [
      keras.Input((64,)),
      keras.layers.Dense(32, 'relu'),
      keras.layers.Dropout(0.2),
      keras.layers.Dense(10),
    ]
    return Digits(
      keras.Sequential(layers),
      loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
      optimizer=keras.optimizers.Adam(learning_rate),
      metrics={'accuracy': keras.metrics.sparse_categorical_accuracy},
    )

  run = tftrain.Experiment(
    make_task,
    digits.train_data,
    digits.test_data,
    steps=steps,
    log_every=20,
    eval_every=20,
    export=False,
    actions=[tftrain.actions.WeightHistograms(50)],
  ).prepare(logdir / name)
  bindings = [f'Adam.learning_rate = {learning_rate}']
  return run.train({'config.gin': f'{bindings[0]}\n'}, bindings).scalars


def main(into):
  """Makes the pictures of the documentation."""
  programs = [shutil.which(name) for name in ('chromium', 'chromedriver')]
  if None in programs:
    sys.exit('no chromium or chromedriver on PATH; run scripts/browser')
  into.mkdir(exist_ok=True)
  with tempfile.TemporaryDirectory() as directory:
    model_dir = pathlib.Path(directory) / 'digits'
    train(model_dir.parent, model_dir.name, 0.003)
    with (
      tensorboard(model_dir) as url,
      browser(url, *programs) as page,
    ):
      page.show('timeseries', '(accuracy%7Closs)')
      page.until(lambda: page.text().count('Smoothed') >= 2, 'two charts')
      time.sleep(2)  # lines are drawn on a canvas, which says nothing
      page.driver.save_screenshot(str(into / 'tensorboard.png'))
    report = sweep(pathlib.Path(directory))
    with browser('', *programs) as page:
      page.driver.set_window_size(1200, 1900)
      page.driver.get(f'file://{report}')
      page.until_text('Learning curves', '(done)')
      time.sleep(2)  # lines are drawn on a canvas, which says nothing
      page.driver.save_screenshot(str(into / 'sweep.png'))


def sweep(directory):
  """The page of a sweep over the digits."""
  sweep_dir = directory / 'digits_lr'
  there = f'--sweep_dir={sweep_dir}'
  file = '--sweep=configs/sweeps/digits_lr.gin'
  target = [sys.executable, '-m', 'tftrain']
  for command in (
    ['plan', there, file, '--', *target],
    ['run', there, '--parallel=2'],
    ['report', there],
  ):
    subprocess.run(
      [sys.executable, '-m', 'tftrain.sweep', *command], check=True
    )
  return sweep_dir / 'results.html'


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
