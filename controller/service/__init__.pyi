from .launch import last_line as last_line
from .launch import trainer_command as trainer_command
from .launch import write_job as write_job
from .preflight import check_evals as check_evals
from .preflight import check_run as check_run
from .service import control_run as control_run
from .service import run_both as run_both
