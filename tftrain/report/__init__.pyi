from .every import Every as Every
from .report import Action as Action
from .report import BoundRun as BoundRun
from .report import Report as Report
from .report import Signal as Signal
