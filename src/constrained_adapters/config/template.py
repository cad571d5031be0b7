"""Writes the commented ``crma.yaml`` of ``crma init``.

The values come from the setting models and the words from :data:`EXPLAINED`; a test holds the two
together, so that no setting lacks its line and no default goes stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.guard import GuardConfig
from constrained_adapters.config.run import (
    AdapterConfig,
    BaseConfig,
    DomainConfig,
    EvaluationConfig,
    MethodConfig,
    RunConfig,
    TrainingConfig,
)
from constrained_adapters.config.yaml_file import dump_value

DEMO_DOMAINS = {
    "medicine": "packaged:medicine",
    "finance": "packaged:finance",
    "programming": "packaged:programming",
}

EXPLAINED = {
    "title": "headline of the report",
    "output": "folder of the run, relative to this file; the same command goes on where it stopped",
    "seed": "of everything that is drawn: same seed, same result",
    "private": "write no example to disk: no replay buffer, no samples in the report; or 'encrypted'",
    "diagnosis": "before training: data (the files alone), full (the base is asked, minutes) or off",
    "base.model": "'embedded' (the packaged 135 M model), a name on the hub, or a folder",
    "base.dtype": "weights of the base: auto, float32, bfloat16 or float16",
    "base.device": "auto, cpu, cuda, cuda:1, mps",
    "base.quantization": "4bit or 8bit (bitsandbytes; GPU or CPU)",
    "base.revision": "branch, tag or commit on the hub",
    "base.trust_remote_code": "run code that comes with the model",
    "adapter.rank": "rank r of each domain's adapter; auto: chosen for each from its examples",
    "adapter.residual_scaling": "factor in front of B · A",
    "adapter.layers": "names of the adapted linear layers, as a list; auto suits the architecture",
    "training.steps": "optimizer steps per domain; or 'epochs', not both",
    "training.epochs": "passes over a domain's training examples; 3 where 'steps' is not given either",
    "training.batch_size": "examples per forward pass",
    "training.gradient_accumulation_steps": "forward passes per optimizer step",
    "training.learning_rate": "peak learning rate; a method may have its own",
    "training.schedule": "constant, linear, cosine, or staged: stages of equal length",
    "training.stage_ratios": "of schedule staged, in parts of learning_rate; null: [0.1, 0.3, 1.0]",
    "training.warmup_ratio": "share of the steps over which the rate rises from 0",
    "training.weight_decay": "decay of the adapter's weights",
    "training.max_grad_norm": "gradients are clipped to this norm; 0: not",
    "training.max_length_tokens": "longer examples are cut",
    "training.share_prefixes": "compute what the prompts of a batch share only once; same loss, less time",
    "training.precision": "of the arithmetic: float32, bf16 or fp16",
    "training.gradient_checkpointing": "trade time for memory",
    "training.optimizer": "a name that transformers.TrainingArguments(optim=...) knows",
    "training.checkpoint_every_steps": "a run that was stopped goes on from its last checkpoint",
    "training.report_to": "trackers: tensorboard, trackio, mlflow, wandb … (installed by you)",
    "methods.recipe": "a name that 'crma methods' lists, or several: lora + replay + ewc",
    "methods.name": "name in tables and folders; empty: the recipe's",
    "methods.learning_rate": "instead of training.learning_rate",
    "methods.constraint_strength": "0 (plain LoRA) to 1 (all closed), or auto; null: the recipe's",
    "methods.constraint_type": "fisher, diagonal, gem, agem, orthogonal or none; null: the recipe's",
    "methods.gradient_memory_size": "examples a domain's memory is made of; null: 32, or a 30th of the rows",
    "methods.protect_base": "also keep a memory of the base's own knowledge",
    "methods.base_text": "text to make it from, as 'data' of a domain; null: the base writes it",
    "methods.penalty_weight": "factor of a penalty, or {ewc_lora: 1000, olora: 0.5}; null: the recipe's",
    "methods.replay_ratio": "share of old rows in replay's batches, 0 to 1; null: 0.1",
    "methods.replay_capacity": "most examples that are kept, of all domains together; null: 1000",
    "methods.replay_capacity_bytes": "most bytes of their tokens and labels; null: no bound",
    "methods.replay_selection": "reservoir (any), highest_loss or diverse; null: reservoir",
    "methods.generated_ratio": "share of written rows in generative_replay's batches, 0 to 1; null: 0.2",
    "methods.generated_examples": "examples that are written of each finished domain; null: 100",
    "methods.prompt_weight": "factor of the prompts' loss in generative_replay; null: 0.25",
    "methods.general_ratio": "share of text of no domain in general_text's batches, 0 to 1; null: 0.1",
    "methods.general_text": "where it comes from, as 'data' of a domain; null: packaged:general",
    "methods.golden_ratio": "share of the golden set's rows in golden_set's batches, 0 to 1; null: 0.1",
    "methods.golden_set": "where it comes from, as 'data' of a domain; null: the base writes it",
    "methods.ewc_decay": "share of the older domains' Fisher that online_ewc keeps, 0 to 1; null: 0.9",
    "methods.gem_margin": "least weight of an old gradient that gem's step goes against; null: 0.5",
    "methods.gem_rows": "kept rows drawn at each step by gem (null: all), by agem (null: a batch)",
    "methods.ogd_directions": "gradients of each domain that ogd stores, weights trained on; null: 200",
    "methods.frozen_ratio": "share of the weights that freeze_important freezes, 0 to 1; null: 0.1",
    "methods.label_smoothing": "share of each label that is spread over all tokens; null: 0",
    "methods.distillation_weight": "factor of distillation's loss; null: 1",
    "methods.distillation_temperature": "temperature of teacher and student; null: 2",
    "methods.distillation_top_k": "tokens of the teacher that are kept for each label; null: 64",
    "methods.rate_by_importance": "slower rates where the Fisher is high: layer or parameter; null: one rate",
    "methods.slowest_rate_ratio": "the slowest of them, in parts of the learning rate; null: 0.1",
    "methods.domain_layers": "isolation: {law: [q_proj], medicine: [v_proj]}; null: adapter.layers for all",
    "methods.domain_ranks": "isolation: {law: 8, medicine: 16}; null: adapter.rank for all",
    "methods.shared_rank": "isolation: rank of the shared adapter, 0 for none; null: adapter.rank",
    "methods.num_layers": "decoder layers that freeze_* hold or last_layers trains; null: half of them",
    "methods.width": "of a bottleneck, or of a progressive column; null: 64",
    "methods.stm_threshold": "highest perplexity of a token that stm learns; null: 2.5",
    "domains.name": "letters of any script: 'law', 'право', '法律'",
    "domains.data": "file (.jsonl .json .csv .tsv .parquet .txt), folder, packaged:NAME or hub data set",
    "domains.train": "instead of 'data', where the split stands already: training file",
    "domains.validation": "... validation file",
    "domains.test": "... test file",
    "domains.prompt": "column of the question; null: detected ('crma data FILE' shows what)",
    "domains.answer": "column of the answer",
    "domains.messages": "column of chat messages",
    "domains.text": "column of running text",
    "domains.choices": "column of the possible answers",
    "domains.subset": "configuration name of a hub data set",
    "domains.max_train": "use at most this many training examples",
    "domains.max_validation": "... validation examples",
    "domains.max_test": "... test examples",
    "domains.keywords": "a prompt with one of these words is routed to this domain",
    "evaluation.split": "what is scored after each domain: test, or validation while settings are chosen",
    "evaluation.metrics": "[exact_match, choice_accuracy, token_f1], the last is slow; null: all that read",
    "evaluation.max_items": "score at most this many examples of each domain",
    "evaluation.batch_size": "examples per scoring pass",
    "evaluation.general": "general text whose perplexity shows what the base loses; null: not measured",
    "evaluation.general_items": "how many pieces of it",
    "evaluation.num_samples": "answers per domain shown in the report, before and after",
    "evaluation.max_new_tokens": "length of those answers",
    "guard.action": "stop; strengthen (the constraint); or roll_back (to the last good state, lower rate)",
    "guard.max_increase": "most rise of an old domain's loss, as a share; or {law: 0.05, medicine: 0.2}",
    "guard.every_steps": "a check is due after so many steps",
    "guard.max_time_ratio": "most of the training's time that checks may take; a dearer one waits",
    "guard.probe_rows": "validation examples of each domain that are looked at",
    "guard.rate_factor": "of roll_back: the learning rate is multiplied by it each time",
    "guard.max_actions": "after so many the next alarm stops the domain's training",
    "prevent_collapse": "true: on; or instead of the word any of these lines",
    "prevent_collapse.stage_ratios": "instead of training.schedule, in parts of the rate; null: that",
    "prevent_collapse.warmup_ratio": "instead of training.warmup_ratio; null: that",
    "prevent_collapse.label_smoothing": "where a method gives none of its own",
    "prevent_collapse.general_ratio": "share of rows that are text of no domain",
    "prevent_collapse.general_text": "where it comes from, as 'data' of a domain",
    "prevent_collapse.attention_dropout": "of attention weights; 0.2 where there is time to settle",
    "prevent_collapse.residual_dropout": "... of what attention and MLP add to the residual stream",
    "prevent_collapse.mlp_dropout": "... of the MLP's inner activations; 0.1",
    "prevent_collapse.guard": "look at answers while training, and go back on an alarm",
    "prevent_collapse.prompts": "at least 8 questions that are not trained on; empty: 16 packaged ones",
    "prevent_collapse.max_new_tokens": "length of those answers; shorter where time_share asks for it",
    "prevent_collapse.time_share": "most of the training's time that looking may take",
    "prevent_collapse.max_checks": "most looks of a domain's training, spread evenly",
    "prevent_collapse.check_every_steps": "fixed steps between looks; null: by time_share",
    "prevent_collapse.min_unique_trigram_ratio": "alarm below",
    "prevent_collapse.max_self_bleu": "alarm above",
    "prevent_collapse.min_entropy_ratio": "alarm where entropy falls below this part of the start's",
    "prevent_collapse.max_identical_ratio": "alarm where more of the answers are the same",
    "prevent_collapse.max_repetition_ratio": "alarm where more of an answer repeats itself",
    "prevent_collapse.hysteresis": "how far a measure must come back, in parts of its limit",
    "prevent_collapse.min_signals": "measures past their limits that are an alarm at once",
    "prevent_collapse.patience": "... looks in a row after which fewer are one",
    "prevent_collapse.checkpoint_every_steps": "steps between healthy checkpoints; at least 4 a training",
    "prevent_collapse.remedies": "beside going back, one more at each alarm; then it stops",
    "prevent_collapse.rate_factor": "of lower_rate, once more at each further alarm",
    "prevent_collapse.low_rate_steps": "how long it is lowered",
    "prevent_collapse.noise_alpha": "of embedding_noise: size of the noise on embedded tokens",
}
"""One line for each setting: ``section.field``."""

SECTIONS = {
    "base": "The model that is taught. It is never changed: each domain becomes an adapter beside it.",
    "adapter": "The adapter of each domain: a LoRA that every engine loads.",
    "training": "How each domain is trained, alike for every method.",
    "methods": "Each method is taught the whole sequence, and the report compares them.",
    "domains": "The sequence, in the order in which it is learnt.",
    "evaluation": "What is measured on every domain after each domain.",
    "guard": "Watches finished domains while a new one is learnt. Off, unless a line here is active.",
    "prevent_collapse": "Keeps a small model from ending in one phrase for every question, and rescues it.",
}

_MODELS: dict[str, type[BaseModel]] = {
    "base": BaseConfig,
    "adapter": AdapterConfig,
    "training": TrainingConfig,
    "methods": MethodConfig,
    "domains": DomainConfig,
    "evaluation": EvaluationConfig,
    "guard": GuardConfig,
    "prevent_collapse": PreventCollapseConfig,
}
_SWITCHES = {"prevent_collapse": False}
"""Sections that can be a word instead."""


_REQUIRED = {"recipe": "crma", "name": "law"}  # shown where there is no default


def template(
    domains: Mapping[str, str] | None = None, base: str = "embedded", *, file: str = "crma.yaml"
) -> str:
    """Return a commented ``crma.yaml`` with every setting; those not in use show their default.

    Args:
        domains: Names and sources, in order; None takes the packaged demo of three domains,
            cut to minutes on a CPU.
        base: The base model.
        file: The file's name, for the commands in its head.
    """
    demo = domains is None
    active: dict[str, dict[str, Any]] = {"base": {"model": base}, "adapter": {"rank": 16}}
    active["training"] = {"steps": 30} if demo else {"epochs": 3.0}
    active["training"]["learning_rate"] = 0.001
    active["evaluation"] = {"max_items": 60} if demo else {"split": "test"}
    active["guard"] = {}
    sources = DEMO_DOMAINS if domains is None else domains
    entries: dict[str, list[dict[str, Any]]] = {
        "methods": [{"recipe": "lora"}, {"recipe": "crma", "learning_rate": 6e-3}],
        "domains": [{"name": name, "data": source} for name, source in sources.items()],
    }
    title = "Three domains, one model" if demo else "Domain after domain: " + ", ".join(sources)
    lines = [
        "# A run of constrained-adapters: one model is taught domain after domain.",
        f"#   {f'crma run {file}':<22} train, measure and write the report; again: go on where it stopped",
        f"#   {'crma status':<22} where it stands (in another terminal)",
        "# Lines that begin with '#' show a setting's default; remove the '#' to change it.",
        "",
    ]
    head = {"title": title, "output": "crma-run", "seed": 0, "private": False, "diagnosis": "data"}
    lines += _settings(RunConfig, head, prefix="", indent="")
    for section, words in SECTIONS.items():
        model = _MODELS[section]
        if section in _SWITCHES:
            switch = f"{section}: {dump_value(_SWITCHES[section])}"
            lines += ["", f"# {words}", f"{switch:<42}  # {EXPLAINED[section]}"]
            lines += _settings(model, {}, prefix=f"{section}.", indent="  ")
            continue
        lines += ["", f"# {words}", f"{section}:"]
        if section in active:
            lines += _settings(model, active[section], prefix=f"{section}.", indent="  ")
            continue
        for values in entries[section]:
            lines.append(f"  - {dump_value(values)}")
        lines.append("  # all that an entry may say:")
        lines += _settings(model, {}, prefix=f"{section}.", indent="  ", item=True)
    return "\n".join(lines) + "\n"


def _settings(
    model: type[BaseModel], active: Mapping[str, Any], *, prefix: str, indent: str, item: bool = False
) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        if f"{prefix}{name}" not in EXPLAINED or (not prefix and name in SECTIONS):
            continue  # a section of its own
        default = _REQUIRED.get(name) if field.is_required() else field.get_default(call_default_factory=True)
        value = dump_value(active.get(name, default))
        bullet = "" if not item else "  " if lines else "- "
        setting = f"{indent}{'' if name in active else '# '}{bullet}{name}: {value}"
        lines.append(f"{setting:<42}  # {EXPLAINED[prefix + name]}")
    return lines
