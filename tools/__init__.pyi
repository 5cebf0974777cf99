from .doctor import examine as examine
from .doctor import report_table as report_table
from .evaluate import EvalArgs as EvalArgs
from .evaluate import cost_table as cost_table
from .evaluate import must_have_scores as must_have_scores
from .evaluate import score_checkpoint as score_checkpoint
from .evaluate import scorecard_table as scorecard_table
