"""How much each parameter of a sweep matters, as Optuna tells."""

from collections.abc import Sequence

from tftrain import errors
from tftrain.sweep import _optuna_sampler
from tftrain.sweep import _ranking

_FEW = 3  # assignments from which it can be told


def of(
  rows: Sequence[_ranking.Row], varied: Sequence[str], goal: str
) -> dict[str, float]:
  """Name -> share, of the parameters that all assignments have.

  Optuna tells, where it is installed: how unlike the parameter is among the
  best assignments and among all (Watanabe et al. 2023, "PED-ANOVA").
  """
  shared = [name for name in varied if all(name in r.values for r in rows)]
  shared = [n for n in shared if len({r.values[n] for r in rows}) > 1]
  if len(rows) < _FEW or len(shared) < 2:
    return {}
  try:
    optuna = _optuna_sampler.imported()
  except errors.ConfigError:  # an extra, and so is this part of the page
    return {}
  study = optuna.create_study(
    direction='maximize' if goal == 'max' else 'minimize'
  )
  kinds = {
    name: optuna.distributions.CategoricalDistribution(
      list(dict.fromkeys(row.values[name] for row in rows))
    )
    for name in shared
  }
  for row in rows:
    study.add_trial(
      optuna.trial.create_trial(
        params={name: row.values[name] for name in shared},
        distributions=kinds,
        value=row.mean,
      )
    )
  evaluator = optuna.importance.PedAnovaImportanceEvaluator()
  return dict(
    optuna.importance.get_param_importances(study, evaluator=evaluator)
  )
