"""One line that keeps what a model knows while somebody's own script fine-tunes it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from constrained_adapters.config.crma import PENALTY_WEIGHT
from constrained_adapters.constraints import SUBSPACE_TYPES, Constraint, SubspaceConstraint
from constrained_adapters.constraints.attach import attach, is_bound
from constrained_adapters.constraints.in_turn import InTurn
from constrained_adapters.constraints.weight_step import WeightStepConstraint
from constrained_adapters.errors import AdapterStateError, ConfigError
from constrained_adapters.memory.base_text import base_texts
from constrained_adapters.memory.kfac import BASE_DOMAIN, KFACMemory
from constrained_adapters.memory.measure import measure_memory
from constrained_adapters.memory.probe import Rows
from constrained_adapters.memory.protected import ProtectedSpace
from constrained_adapters.model.adapter_set import AdapterSet
from constrained_adapters.model.binding import check_base, check_layers, output_change
from constrained_adapters.model.trained import Trained, adapters_off, base_of, find_trained, unwrapped
from constrained_adapters.models.fingerprint import fingerprint_model

TEXT_TOKENS = 64
"""Length of each text that the base writes."""
LORA_STRENGTH = 0.8
FULL_STRENGTH = 0.95


def protect(
    trainer: Any,
    optimizer: Optimizer | None = None,
    *,
    strength: float | None = None,
    memories: Sequence[KFACMemory | str | Path] = (),
    rows: Rows | None = None,
    num_texts: int | None = None,
    layers: Sequence[str] | None = None,
    seed: int = 0,
) -> Protection:
    """Keep a fine-tuning from hurting what the model knows: one line before ``trainer.train()``.

    The model writes text by itself, adapters off; a memory of the inputs that its trained layers see in
    that text (and the memories of finished domains, if given) says which directions every later
    optimizer step must leave alone. With a stock LoRA, A is kept outside them, so ``B A x = 0`` for
    protected inputs x whatever B learns, and what it changes on the rest of those inputs costs a penalty.
    With full fine-tuning the step of each linear layer's weight is kept outside. Everything else of the
    script stays as it is: data, loss, optimizer, schedule, saving.

    Args:
        trainer: A ``transformers.Trainer`` or one made of it, such as TRL's ``SFTTrainer``; or the
            model that is trained: a stock LoRA (``get_peft_model``, ``model.add_adapter``) or a plain
            causal language model.
        optimizer: Of a hand-written loop; it is only checked that it trains this model. It may be left
            out, and with a trainer it must be: whatever optimizer steps the model later is bound.
        strength: Share of each memory that no step may touch, above 0 and at most 1; 1 leaves
            nothing to learn where a memory knows every direction. Default: 0.8 with a LoRA, whose
            changes on the rest are penalised; 0.95 with full fine-tuning, where the rest is free.
        memories: Of finished domains (``gradient_memory.safetensors``) and this base; one of the domain
            ``base`` stands for the text that the base would write.
        rows: (token ids, labels), each of shape (s,), of text like that which is to stay as it is; as many of
            them are drawn as are wanted. Default: the base writes the text itself.
        num_texts: How many texts; default: enough for eight tokens per input direction, at least 32. The base
            writes 64 tokens each.
        layers: Names of the layers to bind, such as ``["q_proj", "v_proj"]``; default: every trained
            linear layer but the head.
        seed: Of that text and of the memory; the global random state is left as it was.

    Returns:
        A handle: :meth:`Protection.remove` and :meth:`Protection.facts`. The protection also ends when
        the model is freed.

    Raises:
        ConfigError: An argument is out of range or of a wrong kind.
        AdapterStateError: The model is protected already, or brings its own constraint; or ``rows`` is empty.
        ModelError: Nothing is trained or can be bound, the model has no language-model head, or a memory
            belongs to another base or other layers.
        UnknownNameError: A name of ``layers`` is no trained linear layer.
        WorkspaceError: A memory cannot be read.
        TrainingError: The base's text gives a memory that is not finite.

    Warns:
        UserWarning: A LoRA has been trained already, parameters are trained that cannot be bound (norms,
            embeddings, the head), or ``strength`` is under 0.7 or 1.

    Cost: once, the writing and one forward and backward pass over it, and while that runs two dense
    d_in × d_in matrices per distinct input and one d_out × d_out per layer (8 GB for the attention of a
    model of 7 B); then per step as :mod:`constrained_adapters.constraints.subspace` says, or
    :mod:`constrained_adapters.constraints.weight_step` for full fine-tuning.
    """
    _check_settings(strength, num_texts)
    model = _model_of(trainer, optimizer)
    trained = find_trained(model, layers)
    if strength is None:
        strength = LORA_STRENGTH if trained.kind == "lora" else FULL_STRENGTH
    base = base_of(model)
    bound = [*trained.matrices.values(), *trained.paired]
    _check_optimizer(optimizer, bound)
    if is_bound(bound):
        raise AdapterStateError(
            "this model is protected already",
            got="a second protect() on parameters that a constraint binds",
            hint="call it once, or .remove() the first protection before",
        )
    fingerprint = fingerprint_model(base)
    finished = [_read(memory, fingerprint) for memory in memories]
    check_layers(finished, list(trained.layers))
    begun = time.perf_counter()
    own = next((memory for memory in finished if memory.domain == BASE_DOMAIN), None)
    if own is None:
        own = _base_memory(model, base, trained, fingerprint, strength, rows, num_texts, seed)
    kept = [own, *(memory for memory in finished if memory is not own)]
    constraint = _constraint(trained, kept, ProtectedSpace(SUBSPACE_TYPES["fisher"], strength))
    _warn_of_unbound(trained)
    if trained.kind == "lora":
        _warn_of_trained(trained)
        constraint.after_step()  # A starts in the complement
    return Protection(model, trained, constraint, own, kept, strength, time.perf_counter() - begun)


@final
class Protection:
    """A protection in force; made by :func:`protect`.

    Args:
        model: Whose steps are bound; the protection does not keep it alive.
        trained: What of it.
        constraint: How.
        base_memory: Of the base's own text.
        memories: All that bind, the base's first.
        strength: Share of each that no step may touch.
        seconds: That making it took.
    """

    def __init__(
        self,
        model: nn.Module,
        trained: Trained,
        constraint: Constraint,
        base_memory: KFACMemory,
        memories: Sequence[KFACMemory],
        strength: float,
        seconds: float,
    ) -> None:
        self.base_memory = base_memory
        """Of the base's own text; write its ``to_bytes()`` and pass the file as one of ``memories``."""
        self._facts: dict[str, Any] = {
            "trains": trained.kind,
            "strength": strength,
            "domains": [memory.domain for memory in memories],
            "num_matrices": len(trained.matrices),
            "bound_parameters": sum(p.numel() for p in trained.matrices.values()),
            "unbound_parameters": sum(p.numel() for p in trained.unbound.values()),
            "memory_seconds": seconds,
            **constraint.describe(),
        }
        self._steps: list[int] = [0]
        self._last: dict[str, Tensor] = {}
        self._attachment = attach(
            constraint, domain=trained.name, on_step=_note_in(self._steps, self._last), owner=model
        )

    def strengthen(self) -> dict[str, float]:
        """Double the penalty on what the closed directions leave open, from the next step on.

        Returns:
            ``penalty_factor``, the product so far; empty with full fine-tuning, where there is no penalty.
        """
        return self._attachment.constraint.strengthen(2.0)

    def remove(self) -> None:
        """Take the protection off; later steps are free. Calling it again does nothing."""
        self._attachment.remove()

    def facts(self) -> dict[str, Any]:
        """What is protected and what the last step's protection did, as plain values.

        ``trains`` (``lora`` or ``full``), ``strength``, ``domains``, ``num_matrices``,
        ``bound_parameters`` and ``unbound_parameters`` (trained, and no memory binds them),
        ``memory_seconds``, ``closed_ratio`` (mean share of input directions that are closed, 0 … 1),
        ``closed_directions``; ``num_steps`` bound so far; after the first of them ``removed_ratio``: norm of
        what was removed from the last gradient over the norm of the whole, 0 … 1.
        """
        last = {key: float(value) for key, value in self._last.items()}
        return {**self._facts, "num_steps": self._steps[0], **last}


def _note_in(steps: list[int], last: dict[str, Tensor]) -> Callable[[Mapping[str, Tensor]], None]:
    def note(measured: Mapping[str, Tensor]) -> None:
        steps[0] += 1
        last.update(measured)

    return note


def _check_settings(strength: float | None, num_texts: int | None) -> None:
    if strength is not None and not 0.0 < strength <= 1.0:
        raise ConfigError(
            "strength is the share of each memory that no step may touch",
            got=f"strength={strength!r}",
            expected="above 0, at most 1",
            hint="0.95; leave the line out to train without protection",
        )
    if num_texts is not None and num_texts < 1:
        raise ConfigError("the base must write some text", got=f"num_texts={num_texts}", expected="1 or more")
    if strength == 1.0:
        warnings.warn(
            "strength=1.0 closes every direction that a memory knows: expect to learn next to nothing",
            stacklevel=3,
        )
    elif strength is not None and strength < 0.7:
        warnings.warn(f"strength={strength} is under 0.7: expect the base to lose something", stacklevel=3)


def _model_of(trainer: Any, optimizer: Optimizer | None) -> nn.Module:
    from transformers import Trainer

    if isinstance(trainer, Trainer):
        if optimizer is not None:
            raise ConfigError("a trainer brings its own optimizer", got="optimizer=", hint="protect(trainer)")
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ConfigError(
                "sharded parameters cannot be bound: each process sees a part of a matrix",
                got="DeepSpeed or FSDP",
                expected="one process, or several that each hold the whole model",
            )
        model: Any = trainer.model
    else:
        model = trainer
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "protect() takes a Trainer or the model that is trained",
            got=type(model).__name__,
            expected="protect(trainer) or protect(model, optimizer)",
        )
    inner = unwrapped(model)
    if isinstance(inner, AdapterSet):
        raise AdapterStateError(
            "a CRMAModel brings its own constraint",
            got=type(inner).__name__,
            hint="model.enable_constrained_training(True)",
        )
    return inner


def _check_optimizer(optimizer: Any, bound: Sequence[nn.Parameter]) -> None:
    if optimizer is None:
        return
    stepped = {id(p) for group in getattr(optimizer, "param_groups", ()) for p in group["params"]}
    missing = sum(id(p) not in stepped for p in bound)
    if missing == len(bound):
        raise ConfigError(
            "this optimizer does not train this model",
            got=f"{type(optimizer).__name__} holds none of its {len(bound)} matrices that can be bound",
            expected="an optimizer of the model's trained parameters, or none",
        )


def _read(memory: KFACMemory | str | Path, fingerprint: str) -> KFACMemory:
    if isinstance(memory, KFACMemory):
        where, found = f"the memory of domain {memory.domain!r}", memory
    else:
        where, found = str(memory), KFACMemory.load(Path(memory))
    check_base(found.base_fingerprint, fingerprint, where=where)
    return found


def _base_memory(
    model: nn.Module,
    base: Any,
    trained: Trained,
    fingerprint: str,
    strength: float,
    rows: Rows | None,
    num_texts: int | None,
    seed: int,
) -> KFACMemory:
    width = max(
        matrix.shape[0 if key in trained.transposed else 1] for key, matrix in trained.matrices.items()
    )
    with adapters_off(model):
        texts = base_texts(base, width, rows, num_texts=num_texts, length_tokens=TEXT_TOKENS, seed=seed)
        return measure_memory(
            base,
            trained.layers,
            texts,
            domain=BASE_DOMAIN,
            base_fingerprint=fingerprint,
            kind=SUBSPACE_TYPES["fisher"],
            strength=strength,
            batch_size=8,
            seed=seed,
        )


def _constraint(trained: Trained, memories: Sequence[KFACMemory], space: ProtectedSpace) -> Constraint:
    bases = space.bases(memories)
    named = {key: bases[layer] for key, layer in trained.layer_of.items()}
    free = [*trained.paired, *trained.unbound.values()]
    if trained.kind == "lora":
        penalty = output_change(trained.pairs, trained.layers, memories, space, PENALTY_WEIGHT)
        return InTurn([penalty, SubspaceConstraint(trained.matrices, named, free=free)])
    return WeightStepConstraint(trained.matrices, named, free=free, transposed=trained.transposed)


def _warn_of_unbound(trained: Trained) -> None:
    if trained.unbound:
        count = sum(p.numel() for p in trained.unbound.values())
        names = list(trained.unbound)
        warnings.warn(
            f"{count:,} trained parameters are not bound, and what they change is not protected: "
            f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}; requires_grad_(False) fixes them",
            stacklevel=3,
        )


def _warn_of_trained(trained: Trained) -> None:
    if any(bool(torch.count_nonzero(b)) for b in trained.paired):
        warnings.warn(
            f"adapter {trained.name!r} has been trained already (B is not zero): what its A holds in "
            "protected directions is removed now, which changes what the model says; "
            "call protect() before the first step",
            stacklevel=3,
        )
