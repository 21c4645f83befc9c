from .devices import Devices as Devices
from .strategy import make_strategy as make_strategy
from .strategy import set_local_devices as set_local_devices
