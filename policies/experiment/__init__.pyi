from .branch_aim import BranchGuidance as BranchGuidance
from .branch_aim import branch_guidance as branch_guidance
