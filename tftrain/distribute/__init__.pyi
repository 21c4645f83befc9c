from .devices import Devices as Devices
from .global_rows import gather as gather
from .global_rows import own_rows as own_rows
from .strategy import make_strategy as make_strategy
from .strategy import set_local_devices as set_local_devices
