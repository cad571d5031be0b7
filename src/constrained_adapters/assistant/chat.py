"""The loop of a chat: lines in, commands obeyed, answers written while they come."""

from __future__ import annotations

from collections.abc import Callable

from constrained_adapters.assistant.commands import obey
from constrained_adapters.assistant.conversation import Conversation
from constrained_adapters.errors import ConstrainedAdaptersError

LEAVES = "(/quit or Ctrl-D leaves)"


def chat(conversation: Conversation, *, read: Callable[[], str], write: Callable[[str], None]) -> None:
    """Talk until the user leaves.

    Args:
        conversation: Is asked; its history grows.
        read: Gives the next line; ``EOFError`` leaves, ``KeyboardInterrupt`` only drops the line.
        write: Given every piece of text, line ends included.
    """
    while True:
        try:
            line = read().strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            write(f"\n{LEAVES}\n")
            continue
        if not line:
            continue
        try:
            if line.startswith("/"):
                reply = obey(line, conversation)
                if reply is None:
                    return
                write(f"{reply}\n")
            else:
                _answer(line, conversation, write)
        except ConstrainedAdaptersError as error:
            write(f"{error}\n")
        except KeyboardInterrupt:  # before the answer began
            write("\n")


def _answer(question: str, conversation: Conversation, write: Callable[[str], None]) -> None:
    choice = conversation.choose(question)
    write(f"[{choice}] ")
    turn = conversation.ask(question, choice=choice, on_text=write)
    write("\n" if turn.whole else " …\n")
