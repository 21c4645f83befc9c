from . import schedules as schedules
from .loss import Loss as Loss
from .schedules import InverseSqrtDecay as InverseSqrtDecay
from .schedules import JoinedSchedules as JoinedSchedules
from .schedules import LinearWarmup as LinearWarmup
from .update_options import Update as Update
