from .command import execute as execute
from .command import main as main
from .command import run as run
