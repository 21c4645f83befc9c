"""ImageFolder: missing, broken and unequal images."""

import tensorflow as tf

from tests.support import data_errors
import tftrain


def picture(path, height=4):
  path.parent.mkdir(exist_ok=True)
  image = tf.zeros([height, 4, 3], tf.uint8)
  path.write_bytes(tf.io.encode_png(image).numpy())


def test_an_image_folder_without_images(tmp_path):
  with data_errors.refused(f'there is no directory {tmp_path / "none"}'):
    tftrain.data.ImageFolder(tmp_path / 'none')
  text = (
    f'{tmp_path} holds no directory of images; put them in {tmp_path}/<class>/,'
    ' as .jpg, .jpeg, .png, .gif, .bmp'
  )
  with data_errors.refused(text):
    tftrain.data.ImageFolder(tmp_path)
  picture(tmp_path / 'a.png')
  with data_errors.refused(text):
    tftrain.data.ImageFolder(tmp_path)


def test_images_that_are_none_or_of_another_size(tmp_path):
  for n in range(20):
    picture(tmp_path / 'cat' / f'{n:02d}.png')
  other = tmp_path / 'cat' / '13.png'
  picture(other, 5)
  with data_errors.refused(
    f'{other} is [5, 4, 3], others are [4, 4, 3]; give '
    'ImageFolder(size=(height, width))'
  ):
    data_errors.read(tftrain.data.ImageFolder(tmp_path))
  data_errors.read(tftrain.data.ImageFolder(tmp_path, size=(4, 4)))
  other.write_bytes(b'no image')
  with data_errors.refused(f'{other} is no image: ...; remove it'):
    data_errors.read(tftrain.data.ImageFolder(tmp_path))
  first = tmp_path / 'cat' / '00.png'
  first.write_bytes(b'no image')
  with data_errors.refused(f'{first} is no image: ...; remove it'):
    tftrain.data.ImageFolder(tmp_path)
