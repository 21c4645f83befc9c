"""Small models, exported and loaded again."""

import keras
import tensorflow as tf

from tests.support import small_tasks
import tftrain
from tftrain.export import signature


def trainer_of(task, data=None):
  return tftrain.Trainer(task, data or tftrain.Arrays(small_tasks.arrays(), 8))


def exported(task, directory, data=None, **options):
  """Trains nothing, exports; the live Task and the loaded SavedModel."""
  trainer = trainer_of(task, data)
  features = trainer.example_features()
  path = tftrain.export.export_model(task, features, directory / '1', **options)
  return features, tf.saved_model.load(str(path))


def served(loaded, name=signature.SERVE, **given):
  return loaded.signatures[name](
    **{k: tf.convert_to_tensor(v) for k, v in given.items()}
  )


class Offering(tftrain.SupervisedTask):
  """Offers its probabilities besides the logits."""

  def probabilities(self, image):
    return {'probability': tf.nn.softmax(self.model(image, training=False))}

  def signatures(self, features):
    one = tftrain.export.Signature(self.probabilities, {'image': features})
    return {'probabilities': one}


def offering(task=Offering):
  return task(
    small_tasks.model(),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    keras.optimizers.Adam(),
  )


def experiment(**options):
  options = {'steps': 40, 'eval_every': 10, 'checkpoint_every': 20, **options}
  return tftrain.Experiment(
    offering,
    lambda: tftrain.Arrays(small_tasks.arrays(), 8),
    lambda: tftrain.Arrays(small_tasks.arrays(seed=5), 16, training=False),
    log_every=10,
    **options,
  )
