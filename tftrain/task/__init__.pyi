from .supervised_task import SupervisedTask as SupervisedTask
from .task import Task as Task
