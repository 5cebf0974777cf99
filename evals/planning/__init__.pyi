from .eval_plan import FILE_NAME as FILE_NAME
from .eval_plan import EvalPlan as EvalPlan
from .eval_plan import fallback_plan as fallback_plan
from .pilot import Pilot as Pilot
from .pilot import make_plan as make_plan
from .pilot import measure as measure
from .pilot import next_pilot as next_pilot
