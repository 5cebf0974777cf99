from .launcher import run_ranks as run_ranks
from .rank_watch import RankLost as RankLost
from .rank_watch import RankWatch as RankWatch
from .session import DivergenceError as DivergenceError
from .session import Session as Session
from .trainer import Trainer as Trainer
