from .branch import HALF as HALF
from .branch import Branch as Branch
from .branch import read_report as read_report
from .branch import train_branch as train_branch
