"""Conversations with a finished run: what answers, the history, commands, and the loop."""

from __future__ import annotations

import pytest
import torch

from constrained_adapters.assistant import Conversation, Decoding, Turn
from constrained_adapters.assistant.chat import LEAVES, chat
from constrained_adapters.assistant.commands import HELP, obey, parse_mix
from constrained_adapters.assistant.conversation import Choice
from constrained_adapters.assistant.streaming import encode_conversation, stream_answer
from constrained_adapters.assistant.transcript import write_transcript
from constrained_adapters.data.examples import Example, Message
from constrained_adapters.data.tokens import encode_prompt
from constrained_adapters.errors import (
    AdapterStateError,
    ConfigError,
    UnknownNameError,
    WorkspaceError,
)
from constrained_adapters.model.opened import open_workspace
from constrained_adapters.routing import find_router


@pytest.fixture
def talk(learnt) -> Conversation:
    opened = open_workspace(learnt.workspace)
    router = find_router(learnt.workspace, opened.model, opened.tokenizer)
    return Conversation(opened, router, Decoding(max_new_tokens=4))


def talked(talk: Conversation, *lines: str | type[BaseException]) -> str:
    """What a chat writes when these lines are typed."""
    left = list(lines)
    written: list[str] = []

    def read() -> str:
        line = left.pop(0) if left else EOFError
        if isinstance(line, str):
            return line
        raise line

    chat(talk, read=read, write=written.append)
    return "".join(written)


def test_the_router_picks_the_domain_of_each_question_until_one_is_chosen(talk):
    assert talk.mode == "auto"
    turn = talk.ask("law 3?")
    assert turn.choice.weights == {"law": 1.0} and str(turn.choice).startswith("law ")
    assert talk.opened.model.active_names == ["数学", "law"]
    talk.use({"数学": 1.0})
    assert talk.ask("law 3?").choice == Choice({"数学": 1.0}) and talk.mode == "数学"
    talk.use({"数学": 0.25, "law": 0.5})
    talk.ask("law 3?")
    assert talk.opened.model._states["数学"].weight == 0.75 and talk.mode == "0.25 数学 + 0.5 law"
    talk.use_base()
    talk.ask("law 3?")
    assert talk.opened.model.active_names == [] and talk.mode == "base"
    talk.use_auto()
    assert talk.choose("数学 3?").weights == {"数学": 1.0}
    with pytest.raises(UnknownNameError):
        talk.use({"laws": 1.0})
    assert talk.mode == "auto"


def test_without_a_router_a_domain_must_be_chosen(talk):
    alone = Conversation(talk.opened, None, talk.decoding)
    with pytest.raises(AdapterStateError, match="no router") as caught:
        alone.ask("law 3?")
    assert "crma route --build" in caught.value.hint
    alone.use({"law": 1.0})
    assert alone.ask("law 3?").choice.route is None


def test_earlier_turns_are_told_to_the_model_and_can_be_forgotten(talk):
    talk.use({"law": 1.0})
    alone = talk.ask("law 5?").answer
    seen = []
    talk.opened.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[1])
    )
    talk.ask("law 5?")
    assert seen[0] > 2 * len("law 5?")
    talk.forget()
    assert talk.ask("law 5?").answer == alone and len(talk.turns) == 1


def test_questions_are_rendered_as_in_training(tiny_tokenizer):
    asked = [Message("user", "law 5?")]
    as_trained = encode_prompt(Example(prompt="law 5?", answer="aa"), tiny_tokenizer, 48)
    assert encode_conversation(asked, tiny_tokenizer, 48) == as_trained
    tiny_tokenizer.chat_template = None
    as_trained = encode_prompt(Example(prompt="law 5?", answer="aa"), tiny_tokenizer, 48)
    assert encode_conversation([Message("user", "x"), *asked], tiny_tokenizer, 48) == as_trained


def test_a_long_conversation_loses_its_oldest_turns_first(tiny_tokenizer):
    said = [
        Message(role, text) for n in range(9) for role, text in (("user", f"q{n}"), ("assistant", f"a{n}"))
    ]
    ids = encode_conversation([Message("system", "s"), *said, Message("user", "last")], tiny_tokenizer, 120)
    text = tiny_tokenizer.decode(ids)
    assert len(ids) <= 120 and "last" in text and "a8" in text and "u0" not in text
    assert text.startswith("<|im_start|>system")
    assert 50 < len(encode_conversation([Message("user", "x" * 500)], tiny_tokenizer, 60)) <= 60


def test_an_answer_comes_in_pieces_and_ends_at_an_end_token(tiny_llama, tiny_tokenizer):
    with torch.no_grad():  # always writes 'é', which is two tokens, and then ends
        tiny_llama.lm_head.weight.zero_()
    wanted = tiny_tokenizer("éé")["input_ids"] + [tiny_tokenizer.eos_token_id]

    class Scripted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.at = 0

        def forward(self, hidden):
            logits = torch.zeros(*hidden.shape[:-1], 264)
            logits[..., wanted[min(self.at, len(wanted) - 1)]] = 1.0
            self.at += 1
            return logits

    tiny_llama.lm_head = Scripted()
    pieces: list[str] = []
    text, whole = stream_answer(tiny_llama, tiny_tokenizer, [5, 6], Decoding(9), pieces.append)
    assert (text, whole) == ("éé", True) and "".join(pieces).strip() == "éé"
    assert all("\ufffd" not in piece for piece in pieces)
    tiny_llama.lm_head = Scripted()
    assert stream_answer(tiny_llama, tiny_tokenizer, [5, 6], Decoding(2)) == ("é", False)


def test_a_seed_gives_the_same_answer_and_leaves_the_global_state(tiny_llama, tiny_tokenizer):
    drawn = Decoding(12, temperature=1.5, seed=3)
    before = torch.random.get_rng_state()
    first = stream_answer(tiny_llama, tiny_tokenizer, [5, 6], drawn)
    assert stream_answer(tiny_llama, tiny_tokenizer, [5, 6], drawn) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    other = stream_answer(tiny_llama, tiny_tokenizer, [5, 6], Decoding(12, temperature=1.5, seed=4))
    assert other != first


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}]
)
def test_decoding_out_of_range_is_refused(settings):
    with pytest.raises(ConfigError):
        Decoding(**settings)


def test_ctrl_c_stops_the_answer_and_not_the_chat(talk, monkeypatch):
    def interrupted(ids, **kwargs):
        raise KeyboardInterrupt

    talk.use({"law": 1.0})
    monkeypatch.setattr(talk.opened.model, "generate", lambda **kwargs: interrupted(None))
    said = talked(talk, "law 3?", KeyboardInterrupt, "/base", "/quit", "never read")
    assert said == f"[law]  …\n\n{LEAVES}\nanswered by: the base\n"
    assert talk.turns == [Turn("law 3?", "", Choice({"law": 1.0}), whole=False)]


def test_commands_in_a_chat(talk):
    said = talked(
        talk,
        "",
        "/domain 数学",
        "x",
        "/mix law=0.7 数学=0.3",
        "/domain laws",
        "/bas",
        "/mix law",
        "/help",
        "/auto",
    )
    assert "answered by: 数学\n[数学] " in said and "answered by: 0.7 law + 0.3 数学\n" in said
    assert "no domain named 'laws'" in said and "Try:      law" in said
    assert "no command named 'bas'" in said and "Try:      base" in said
    assert "this is no mix" in said and HELP in said and said.endswith("each question\n")
    assert obey("/clear", talk) == "forgotten" and not talk.turns
    assert obey("/quit", talk) is None


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("law=0.7 medicine=0.3", {"law": 0.7, "medicine": 0.3}),
        ("family law = 1e-1  数学=-2", {"family law": 0.1, "数学": -2.0}),
    ],
)
def test_mixes_are_read(text, wanted):
    assert parse_mix(text) == wanted


@pytest.mark.parametrize("text", ["", "law", "law=", "law=x", "=1", "law=1 law=2", "law=1 medicine"])
def test_what_is_no_mix_is_refused(text):
    with pytest.raises(ConfigError):
        parse_mix(text)


def test_a_weight_that_is_no_number_is_refused(talk):
    with pytest.raises(ConfigError, match="not a finite number"):
        obey("/mix law=nan", talk)


def test_a_transcript_never_overwrites_another(tmp_path):
    turns = [Turn("几何?", "aa", Choice({"数学": 1.0}), True), Turn("b", "cut", Choice({}), False)]
    file = tmp_path / "new" / "talk.md"
    assert write_transcript(turns, file, title="Talk") == file
    assert write_transcript(turns, file, title="Talk").name == "talk-2.md"
    text = file.read_text(encoding="utf-8")
    assert text == "# Talk\n\n**You:** 几何?\n\n**数学:** aa\n\n**You:** b\n\n**base:** cut …\n"
    (tmp_path / "file").touch()
    with pytest.raises(WorkspaceError, match="cannot be written"):
        write_transcript(turns, tmp_path / "file" / "talk.md", title="Talk")
