from .loader import load as load
from .loader import load_all as load_all
from .loader import Loaded as Loaded
