"""Files of other frameworks to scenarios, and plans to files of other frameworks, without torch and without those frameworks.

what a file says       keys: values by their place in a scenario, and what nobody used
read                   huggingface (families: which formula is which architecture), arguments and megatron, deepspeed
to a scenario          assemble: several files, cluster and defaults in one; toml_text writes it; exact: Megatron-LM's own plan
from a plan            expressible: the decisions that other frameworks know; to_megatron, to_torchtitan, to_deepspeed; forms: one door

Only keys whose meaning is certain are used. A key that is not used is told by its name, a value that a scenario cannot express is told
with what is taken instead, and a model or plan that cannot be expressed is refused.
"""
