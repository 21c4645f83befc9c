"""Sources with one example per file: images by class, texts."""

import abc
from collections.abc import Mapping
import os
import pathlib
from typing import Any

import tensorflow as tf

from tftrain import errors
from tftrain.data.sources import file_source
from tftrain.data.sources import source as source_lib

_IMAGES = ('.jpg', '.jpeg', '.png', '.gif', '.bmp')


class _Files(source_lib.Indexed):
  """Abstract base of sources with one example per file, by index."""

  def __init__(self, paths: list[str]):
    self._paths = paths
    self._size = len(paths)

  def lookup(self, index: tf.Tensor) -> Any:
    return tf.map_fn(
      self._read,
      index,
      fn_output_signature=self.element_spec,
      parallel_iterations=16,
    )

  @abc.abstractmethod
  def _read(self, index: tf.Tensor) -> Any:
    """Returns the example of one file."""

  def fingerprint(self) -> Mapping[str, Any]:
    return {
      'kind': type(self).__name__,
      'files': self._size,
      'names': tf.strings.to_hash_bucket_fast(
        ' '.join(map(os.path.basename, self._paths)), 1 << 60
      )
      .numpy()
      .item(),
    }


class TextFiles(_Files):
  """Whole files as `{'text': string}`.

  Args:
    paths: A glob, a path or a list of them.
  """

  def __init__(self, paths: file_source.Paths):
    super().__init__(file_source.find(paths))
    self.element_spec = {'text': tf.TensorSpec([], tf.string)}

  def _read(self, index: tf.Tensor) -> Any:
    return {'text': tf.io.read_file(tf.gather(self._paths, index))}


class ImageFolder(_Files):
  """Images in one directory per class, as `{'image': ..., 'label': int64}`.

  A class has the name of its directory; labels count the classes in
  alphabetical order. Many small files are slow to read from a network:
  `write_records` packs them.

  Args:
    directory: Directory with one directory per class.
    size: (height, width) in pixels to resize images to; None if all images have
      the same size already.
    channels: 1 or 3.

  Attributes:
    class_names: Class names, by label.

  Raises:
    InputError: If `directory` has no class or no image, or if the first image
      cannot be read.
  """

  def __init__(
    self,
    directory: str | pathlib.Path,
    *,
    size: tuple[int, int] | None = None,
    channels: int = 3,
  ):
    directory = str(directory)
    if not tf.io.gfile.isdir(directory):
      raise errors.InputError(f'there is no directory {directory}')
    names = sorted(tf.io.gfile.listdir(directory))
    self.class_names = [
      name.rstrip('/')
      for name in names
      if tf.io.gfile.isdir(os.path.join(directory, name))
    ]
    found = [
      (path, label)
      for label, name in enumerate(self.class_names)
      for path in sorted(
        tf.io.gfile.glob(os.path.join(directory, name.rstrip('/'), '*'))
      )
      if path.lower().endswith(_IMAGES)
    ]
    if not found:
      raise errors.InputError(
        f'{directory} holds no directory of images; put them in '
        f'{directory}/<class>/, as {", ".join(_IMAGES)}'
      )
    super().__init__([path for path, _ in found])
    self._labels = [label for _, label in found]
    self._image_size = size
    self._channels = channels
    try:
      first = self._image(tf.constant(0, tf.int64))
    except tf.errors.OpError as error:
      raise errors.InputError(_no_image(self._paths[0], error)) from error
    self.element_spec = {
      'image': tf.TensorSpec(first.shape, tf.uint8),
      'label': tf.TensorSpec([], tf.int64),
    }

  def fingerprint(self) -> Mapping[str, Any]:
    shape = self.element_spec['image'].shape.as_list()
    return {**super().fingerprint(), 'image': shape}

  def diagnose(self) -> str | None:
    for index, path in enumerate(self._paths):
      try:
        image = self._image(tf.constant(index, tf.int64))
      except tf.errors.OpError as error:
        return _no_image(path, error)
      if image.shape != self.element_spec['image'].shape:
        wanted = self.element_spec['image'].shape.as_list()
        return (
          f'{path} is {image.shape.as_list()}, others are {wanted}; give '
          'ImageFolder(size=(height, width))'
        )
    return None

  def _image(self, index: tf.Tensor) -> tf.Tensor:
    data = tf.io.read_file(tf.gather(self._paths, index))
    image = tf.io.decode_image(data, self._channels, expand_animations=False)
    if self._image_size is None:
      return image
    resized = tf.image.resize(image, self._image_size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)

  def _read(self, index: tf.Tensor) -> Any:
    shape = self.element_spec['image'].shape
    image = tf.ensure_shape(self._image(index), shape)
    label = tf.gather(tf.constant(self._labels, tf.int64), index)
    return {'image': image, 'label': label}


def _no_image(path: str, error: Exception) -> str:
  return f'{path} is no image: {errors.one_line(error)}; remove it'
