from .compare_runs import compare as compare
from .tuning import tune as tune
