from .action import Action as Action
from .action import ActionLike as ActionLike
from .action import as_action as as_action
from .every import Every as Every
from .report import BoundRun as BoundRun
from .report import Report as Report
from .report import Signal as Signal
