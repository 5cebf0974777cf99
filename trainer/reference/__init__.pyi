from .launcher import run_ranks as run_ranks
from .rank_watch import RankLostError as RankLostError
from .rank_watch import RankWatch as RankWatch
from .session import DivergenceError as DivergenceError
from .session import Session as Session
from .trainer import Trainer as Trainer
