"""Importance of the parameters of a sweep, computed by Optuna."""

from collections.abc import Sequence

from tftrain import errors
from tftrain.sweep import _optuna_sampler
from tftrain.sweep import _ranking

_FEW = 3  # fewest assignments to compute importances from


def of(
  rows: Sequence[_ranking.Row], varied: Sequence[str], goal: str
) -> dict[str, float]:
  """Returns name -> share of importance for the shared parameters.

  These are the parameters that vary and that all assignments have. The
  importance is how much the distribution of a parameter among the best
  assignments differs from that among all (Watanabe et al. 2023, "PED-ANOVA").
  The result is empty without Optuna, and for too few assignments or parameters.
  """
  shared = [name for name in varied if all(name in r.values for r in rows)]
  shared = [n for n in shared if len({r.values[n] for r in rows}) > 1]
  if len(rows) < _FEW or len(shared) < 2:
    return {}
  try:
    optuna = _optuna_sampler.imported()
  except errors.ConfigError:  # Optuna is an optional dependency
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
