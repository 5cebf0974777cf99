from .branch_aim import BranchAim as BranchAim
from .branch_aim import ask_for_branches as ask_for_branches
from .branch_aim import branch_aim as branch_aim
from .branch_aim import branches_made as branches_made
