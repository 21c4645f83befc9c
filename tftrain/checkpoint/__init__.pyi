from .checkpointer import Checkpointer as Checkpointer
from .retention import KeepBest as KeepBest
