from .compare_runs import compare as compare
