from .plan import Plan as Plan
from .sweep import Sweep as Sweep
