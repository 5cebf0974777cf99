from .launcher import run_ranks as run_ranks
from .session import DivergenceError as DivergenceError
from .session import Session as Session
from .trainer import Trainer as Trainer
