from .evaluator import Evaluator as Evaluator
from .predictor import predict as predict
