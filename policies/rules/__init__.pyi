from .policy import RulesPolicy as RulesPolicy
