from .client import EvaluationError as EvaluationError
from .client import Evaluator as Evaluator
from .client import Failure as Failure
from .client import evaluate as evaluate
from .launchers import launcher_problem as launcher_problem
from .supervision import set_up_process as set_up_process
