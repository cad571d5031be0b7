"""Asking a finished run: a conversation that picks the domain of each question, and the simplest door."""

from constrained_adapters.assistant.conversation import Conversation, Turn
from constrained_adapters.assistant.simple import SimpleDomainAdapter
from constrained_adapters.assistant.streaming import Decoding

__all__ = ["Conversation", "Decoding", "SimpleDomainAdapter", "Turn"]
