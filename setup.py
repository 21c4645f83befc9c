"""Packaging; pyproject.toml holds the settings of the tools only."""

import pathlib
import re

import setuptools

_DOOR = pathlib.Path(__file__).parent / 'tftrain' / '__init__.py'
_VERSION = re.search(r"^__version__ = '(.+)'$", _DOOR.read_text('utf-8'), re.M)
assert _VERSION, f'no __version__ in {_DOOR}'

_EXAMPLES = ['scikit-learn>=1.5']
_FIGURES = ['matplotlib>=3.8']
_SAMPLERS = ['optuna>=5,<6']
_PAGES = ['plotly>=6,<8']
# What a source of tftrain.data.sources.third_party needs.
_SOURCES = {
  'arrayrecord': ['array_record>=0.8'],
  'parquet': ['pyarrow>=17'],
  'tfds': [
    'array_record>=0.8',
    'importlib_resources>=6',  # which tensorflow-datasets forgets
    'tensorflow-datasets>=4.9.9',
  ],
}

setuptools.setup(
  name='tftrain',
  version=_VERSION[1],
  description='Training loops for TensorFlow 2 and Keras 3',
  license='Apache-2.0',
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.1',
    'gin-config>=0.5,<0.6',
    'keras>=3.15,<4',
    'lazy_loader>=0.4,<1',
    'numpy>=1.26',
    'rich>=13',
    'tensorboard>=2.20,<3',  # TensorFlow 2.21 no longer brings it
    'tensorflow>=2.21,<3',
    'tqdm>=4.66',
  ],
  extras_require={
    'cuda': ['tensorflow[and-cuda]>=2.21,<3'],
    'examples': _EXAMPLES,
    'figures': _FIGURES,
    'onnx': ['onnxruntime>=1.20', 'tf2onnx>=1.17'],
    'optuna': _SAMPLERS,
    'report': _PAGES,
    **_SOURCES,
    'test': [
      *_EXAMPLES,
      *_FIGURES,
      *_PAGES,
      *_SAMPLERS,
      *(package for needed in _SOURCES.values() for package in needed),
      'mypy>=2.4,<3',
      'pytest>=9,<10',
      'pytest-timeout>=2.3',
      'pytest-xdist>=3.6',
      'pyyaml>=6',
      'ruff>=0.17,<0.18',  # another version formats differently
      'setuptools>=77',
    ],
  },
  entry_points={
    'console_scripts': [
      'tftrain = tftrain.launch:main',
      'tftrain-sweep = tftrain.sweep.__main__:run_main',
    ]
  },
  # In the wheel, what a checkout has beside the package lies inside it.
  packages=[
    *setuptools.find_packages(include=['tftrain', 'tftrain.*']),
    'tftrain.bundled.configs',
    'tftrain.bundled.examples',
  ],
  package_dir={
    'tftrain.bundled.configs': 'configs',
    'tftrain.bundled.examples': 'examples',
  },
  package_data={
    'tftrain': ['**/*.pyi', 'py.typed'],
    'tftrain.bundled.configs': ['**/*.gin'],
    'tftrain.launch': ['templates/**/*.txt'],
  },
)
