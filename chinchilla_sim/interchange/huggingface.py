"""A `config.json` of Hugging Face transformers as [model]: a formula where one is that architecture exactly, else built by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chinchilla_sim.interchange.families import FAMILIES, REQUIRED, Family
from chinchilla_sim.interchange.keys import Keys, Parts, Said
from chinchilla_sim.scenario.fields import show_value

FORM = "Hugging Face config"
DEFAULT_TOKENS = 4096
_DESCRIBES = ("architectures", "model_type")
_NO_OPTION = frozenset({
    *_DESCRIBES, "transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache", "auto_map", "quantization_config",
    "_attn_implementation", "_attn_implementation_autoset", "initializer_range", "initializer_factor", "rope_theta", "rope_scaling",
    "rope_parameters", "pretraining_tp", "output_attentions", "output_hidden_states", "return_dict", "torchscript", "problem_type",
    "gradient_checkpointing", "task_specific_params", "max_length", "min_length", "do_sample", "num_beams", "temperature",
})  # fmt: skip
_NO_OPTION_ENDS = ("_token_id", "_eps", "_epsilon")
"""Keys about the file, its checkpoint, its first weights or how it generates, none of which changes the amounts of what is computed, and on
several of which versions of transformers disagree. Everything else is given to the configuration class."""


def read_huggingface(config: Mapping[str, Any], source: str, tokens: int | None = None) -> tuple[Parts, Keys]:
    """What the configuration says; `tokens` is the length of a sample, which no configuration says."""
    keys = Keys(source, config)
    architecture = _architecture(keys)
    family = FAMILIES.get(architecture)
    reasons = _reasons_against(keys.values, family) if family else []
    if family and not reasons:
        keys.say("model.formula", family.formula, architecture)
        _say_options(keys, family, tokens)
    elif architecture:
        if family:
            keys.warnings.append(f"{' and '.join(reasons)}: not what formula {family.formula} computes, so transformers builds the model")
        _say_builtin(keys, architecture, tokens)
    if keys.values.get("quantization_config") is not None:
        keys.warn("quantization_config", "is not expressed: weights count in the precision of the job")
    return Parts(source, FORM, keys.said, keys.ignored(), tuple(keys.warnings)), keys


def _architecture(keys: Keys) -> str:
    """The class of the network; empty, and a mistake, where the file does not name one."""
    named = keys.take("architectures")
    keys.used.add("model_type")
    if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str):
        return named[0]
    what = "is missing" if named is None else f"must name one class, not {show_value(named)}"
    keys.wrong("architectures", what, 'write for example "architectures": ["LlamaForCausalLM"]')
    return ""


def _reasons_against(config: Mapping[str, Any], family: Family) -> list[str]:
    """What the file says that the formula does not compute."""
    found = [
        f"{key} = {show_value(value)}"
        for key, allowed in family.must.items()
        if (value := config.get(key, allowed[0])) is not None and value not in allowed
    ]
    rates = {config.get(key, default) for key, default in family.dropouts}
    if len(rates) > 1:
        found.append(f"{' and '.join(key for key, _ in family.dropouts)} differ")
    return found


def _say_options(keys: Keys, family: Family, tokens: int | None) -> None:
    renamed = {ours: theirs for theirs, ours in family.alike.items()}
    keys.used |= family.must.keys()
    for option, (theirs, default) in family.options.items():
        key = theirs if theirs in keys.values else renamed.get(theirs, theirs)
        value = _labels(keys) if theirs == "num_labels" else _value(keys, key, default)
        if value is None and default is REQUIRED:
            if not any(mistake.where == key for mistake in keys.mistakes):
                keys.wrong(key, f"is missing; {family.formula} needs it", f'write for example "{key}": 8')
        else:
            keys.say(f"model.options.{option}", default if value is None else value, key if key in keys.values else f"{key}, by default")
    for option, value in family.fixed.items():
        keys.say(f"model.options.{option}", value, "architectures")
    for key, default in family.dropouts[:1]:
        rate = keys.number(key)
        keys.say("model.options.dropout", default if rate is None else rate, key if key in keys.values else f"{key}, by default")
    keys.used |= {key for key, _ in family.dropouts}
    if family.formula == "t5":
        keys.say("model.options.gated", keys.values.get("feed_forward_proj", "relu") == "gated-gelu", "feed_forward_proj")
    if family.formula != "vit":
        _say_tokens(keys, "model.options.tokens", family.positions, tokens)
    window = keys.values.get("sliding_window")
    length = keys.said["model.options.tokens"].value if "model.options.tokens" in keys.said else 0
    if isinstance(window, int) and 0 < window < length:
        keys.warn("sliding_window", f"= {window} is not expressed: attention counts over all {length} tokens")


def _value(keys: Keys, key: str, default: Any) -> Any:
    """A value of the kind of its default: on or off, or a whole number."""
    if isinstance(default, bool):
        value = keys.take(key)
        if value is not None and not isinstance(value, bool):
            keys.wrong(key, f"must be true or false, not {show_value(value)}")
        return value if isinstance(value, bool) else None
    return keys.whole(key)


def _labels(keys: Keys) -> int | None:
    """Classes of a classifier: transformers writes them as a table of names."""
    names = keys.take("id2label")
    keys.used.add("label2id")
    return len(names) if isinstance(names, dict) and names else keys.whole("num_labels")


def _say_tokens(keys: Keys, place: str, positions: str, tokens: int | None) -> None:
    most = keys.whole(positions) if positions else None
    if tokens:
        keys.said[place] = Said(tokens, "--tokens")
    elif positions:
        most = most or DEFAULT_TOKENS
        keys.say(
            place, min(most, DEFAULT_TOKENS), f"{positions}{f', at most {DEFAULT_TOKENS}' if most > DEFAULT_TOKENS else ''}; or --tokens"
        )


def _say_builtin(keys: Keys, architecture: str, tokens: int | None) -> None:
    """The model as transformers builds it from the same values."""
    keys.say("model.builtin", "huggingface", "architectures")
    keys.say("model.options.architecture", architecture, "architectures")
    given = {key: value for key, value in keys.values.items() if key not in _NO_OPTION and not key.endswith(_NO_OPTION_ENDS)}
    stated = {key: value for key, value in given.items() if not _holds_null(value)}
    for key, value in stated.items():
        keys.used.add(key)
        keys.say(f"model.options.config.{key}", value, key)
    if unsaid := sorted(given.keys() - stated.keys()):
        keys.used |= set(unsaid)
        keys.warnings.append(f"null in {', '.join(unsaid)} cannot be written in a scenario: the default of the class counts")
    for positions in ("max_position_embeddings", "n_positions"):
        if isinstance(keys.values.get(positions), int):
            return _say_tokens(keys, "model.options.tokens", positions, tokens)
    if tokens:
        _say_tokens(keys, "model.options.tokens", "", tokens)


def _holds_null(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_null, value.values()))
    return any(map(_holds_null, value)) if isinstance(value, list) else value is None
