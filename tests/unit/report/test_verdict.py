import pytest

from constrained_adapters.report.comparison import compare
from constrained_adapters.report.measures import drift_percent, plasticity
from constrained_adapters.report.verdict import noise_note, verdict

from .factory import make_result


def changed(result, **summaries):
    """The result with ``name={key: value}`` written into the summaries; a value None removes the key."""
    result = result.model_copy(deep=True)
    for method in result.methods:
        for key, value in summaries.get(method.name, {}).items():
            if value is None:
                method.summary.pop(key, None)
            else:
                method.summary[key] = value
    return result


def plain(text):
    return text.replace("\u00a0", " ")


def test_a_win_is_told_with_the_strongest_rival():
    text = plain(verdict(make_result(["crma", "lora", "ewc"])))
    assert text.startswith(
        "crma forgot least (drift +1.9 % against +17.6 % for ewc), and learned about as much"
    )
    assert text.endswith("its perplexity on general text went from 12.03 to 12.22 (+1.6 %).")


def test_a_loss_on_both_counts_is_told_as_one():
    result = changed(
        make_result(),
        crma={"drift_percent": 50.0, "learned": 0.3},
        lora={"drift_percent": 4.0, "learned": 0.8},
    )
    text = plain(verdict(result))
    assert "crma forgot more than lora (drift +50.0 % against +4.0 % for lora), and learned less" in text
    assert "30.0 % exact match against 80.0 % for lora" in text


def test_one_of_each_is_joined_by_but():
    forgot_more = changed(
        make_result(), crma={"drift_percent": 50.0, "learned": 0.95}, lora={"drift_percent": 4.0}
    )
    assert "forgot more than lora" in verdict(forgot_more)
    assert ", but learned more" in verdict(forgot_more)
    learned_less = changed(make_result(), crma={"drift_percent": -1.0, "learned": 0.4})
    assert "crma forgot least (drift −1.0" in verdict(learned_less)
    assert ", but learned less" in verdict(learned_less)


def test_a_rival_that_keeps_old_data_is_named_as_such():
    assert "for replay, which keeps old data)" in verdict(make_result(["crma", "replay", "lora"]))


def test_references_are_not_rivals():
    text = verdict(make_result(["crma", "lora", "joint"]))
    assert "joint" not in text


def test_without_crma_the_least_forgetful_method_is_the_subject():
    assert verdict(make_result(["lora", "ewc"])).startswith("ewc forgot least")


def test_a_single_method_and_a_single_domain():
    alone = plain(verdict(make_result(["lora"])))
    assert alone.startswith(
        "After 3 domains, lora’s loss on the finished ones rose by 42.1 % on average since"
    )
    assert "but lora learned each domain to 78.0 % exact match on average (base 0.0 %)" in alone
    first = plain(verdict(make_result(["crma"], ["medicine"])))
    assert first.startswith("crma learned medicine to 82.0 % exact match (base 0.0 %)")
    assert "nothing to forget yet" in first
    assert "drift" not in first


def test_running_text_is_judged_by_loss_where_no_answer_can_match():
    result = make_result(["lora"], ["medicine", "law"])
    for method in result.methods:
        method.summary = {"drift_percent": 3.0}
        method.matrices = {"loss": [[2.0, 4.0], [1.0, 4.0], [1.0, 1.0]]}
    assert plasticity(result.methods).values == {"lora": pytest.approx(62.5)}
    assert "cut the loss of each domain by 62.5 % on average" in plain(verdict(result))


def test_nothing_run_and_nothing_measured_are_said_plainly():
    assert "No method was run" in verdict(make_result(methods=[]))
    bare = make_result(["lora"])
    bare.methods[0].summary = {}
    bare.methods[0].matrices = {}
    assert verdict(bare) == "lora was trained on 3 domains; its forgetting was not measured."


def test_the_note_states_the_margin_of_chance():
    assert "600 test items: differences under about 4.0 points" in noise_note(make_result())


def test_drift_counts_from_the_moment_a_domain_was_learned():
    losses = [[3.0, 3.0], [1.0, 2.5], [1.5, 2.0]]
    assert drift_percent(losses, 2, 0) == pytest.approx(50.0)
    assert drift_percent(losses, 1, 1) is None
    assert drift_percent([[3.0], [None]], 1, 0) is None
    assert drift_percent([[3.0], [0.0]], 1, 0) is None


def test_the_best_of_each_column_is_marked_among_contestants_only():
    table = compare(make_result(["crma", "lora", "joint"]).methods)
    rows = {
        row.name: dict(zip([c.title for c in table.columns], row.cells, strict=True)) for row in table.rows
    }
    assert rows["crma"]["Drift"].best and not rows["lora"]["Drift"].best
    assert rows["lora"]["Learned"].best
    assert not any(cell.best for cell in rows["joint"].values())
    assert rows["base, untrained"]["Choice accuracy"].text == "21.0\u00a0%"
    assert table.has_references


def test_equal_texts_are_marked_together_and_a_column_of_equals_not_at_all():
    result = changed(
        make_result(["crma", "lora", "ewc"]),
        crma={"accuracy": 0.50001, "learned": 0.5},
        lora={"accuracy": 0.50002, "learned": 0.5},
        ewc={"accuracy": 0.4, "learned": 0.5},
    )
    table = compare(result.methods)
    at = {column.title: number for number, column in enumerate(table.columns)}
    assert [row.cells[at["Final accuracy"]].best for row in table.rows] == [False, True, True, False]
    assert not any(row.cells[at["Learned"]].best for row in table.rows)


def test_a_column_that_nobody_measured_is_left_out():
    result = make_result(["crma"], ["medicine"])
    titles = [column.title for column in compare(result.methods).columns]
    assert "Drift" not in titles and "BWT" not in titles and "Final accuracy" in titles
