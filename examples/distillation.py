"""Distillation: a small model learns from labels and from a larger model.

The student never sees a 3. Yet it recognises most of them, because the
teacher's soft targets for other digits carry the similarity: this 8 looks a
little like a 3 (Hinton et al. 2015, section 3).
"""

from collections.abc import Callable

import gin
import keras
import tensorflow as tf

from examples import digits
import tftrain


class Distillation(tftrain.Task):
  """Trains `student` on labels and on the soft targets of `teacher`.

  The teacher is an attribute and therefore part of the run's state: checkpoints
  include it. It is frozen, so training never changes it.
  """

  def __init__(
    self,
    teacher: keras.Model,  # images [batch, 64] -> logits [batch, classes]
    student: keras.Model,  # the same
    optimizer: keras.Optimizer,
    temperature: float = 4.0,  # higher values soften the targets
    hard: float = 0.1,  # the labels' share of the loss
  ):
    super().__init__(student, optimizer)
    self.teacher = teacher
    self.teacher.trainable = False
    self._temperature = temperature
    self._hard = hard

  def loss(self, batch, training):
    images, labels = batch
    student = self.model(images, training=training)  # [batch, classes]
    teacher = self.teacher(images, training=False)  # [batch, classes]
    hard = keras.losses.sparse_categorical_crossentropy(
      labels, student, from_logits=True
    )  # [batch]
    soft = keras.losses.kl_divergence(
      tf.nn.softmax(teacher / self._temperature),
      tf.nn.softmax(student / self._temperature),
    )  # [batch]
    # The gradient of `soft` shrinks with the square of the temperature.
    soft *= self._temperature**2
    return tftrain.Loss(
      self._hard * hard + (1 - self._hard) * soft,
      accuracy=tf.equal(tf.argmax(student, -1), labels),
      teacher_accuracy=tf.equal(tf.argmax(teacher, -1), labels),
    )

  def artifacts(self, batch):
    """Returns the digits on which both models differ most, with their answers.

    The ten columns on the right are probabilities: above the teacher's, below
    the student's.
    """
    images = batch[0]
    teacher = tf.nn.softmax(self.teacher(images, training=False))
    student = tf.nn.softmax(self.model(images, training=False))
    difference = tf.reduce_sum(tf.abs(teacher - student), axis=-1)  # [batch]
    answers = tf.repeat(tf.stack([teacher, student], axis=1), 4, axis=1)
    panels = tf.concat([tf.reshape(images, [-1, 8, 8]), answers], axis=2)
    most = tf.argsort(difference, direction='DESCENDING')[:8]
    return {'differences': tf.gather(panels, most)[..., None]}


def make_teacher(steps: int) -> keras.Model:
  """Returns a convolutional network, trained on all digits in a few seconds.

  Train a larger teacher in a separate Experiment and replace `train` by
  `tftrain.Checkpointer(model_dir, trainer).restore()`.
  """
  task = digits.make_task()
  trainer = tftrain.Trainer(task, digits.train_data())
  trainer.train(steps)
  return task.model


@gin.register(module='distillation')
def make_task(
  optimizer: Callable[[], keras.Optimizer] = keras.optimizers.Adam,
  teacher_steps: int = 500,
  units: int = 32,
  temperature: float = 4.0,
  hard: float = 0.1,
) -> Distillation:
  layers = [keras.layers.Dense(units, 'relu'), keras.layers.Dense(10)]
  student = keras.Sequential([keras.Input((64,)), *layers])
  teacher = make_teacher(teacher_steps)
  return Distillation(teacher, student, optimizer(), temperature, hard)


@gin.register(module='distillation')
def train_data(unseen: int = 3, batch_size: int = 32) -> tftrain.Arrays:
  images, labels = digits.load('train')
  seen = labels != unseen
  return tftrain.Arrays((images[seen], labels[seen]), batch_size)


@gin.register(module='distillation')
def unseen_data(unseen: int = 3) -> tftrain.Arrays:
  images, labels = digits.load('test')
  chosen = images[labels == unseen], labels[labels == unseen]
  return tftrain.Arrays(chosen, len(chosen[0]), training=False)
