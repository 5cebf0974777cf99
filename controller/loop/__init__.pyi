from .daemon import Controller as Controller
from .eval_planner import eval_settings as eval_settings
from .eval_planner import measured_plan as measured_plan
from .eval_planner import read_plan as read_plan
