from .experiment import Experiment as Experiment
from .rewind import Rewind as Rewind
from .run import Result as Result
from .run import Run as Run
from .warm_start import WarmStart as WarmStart
