"""crma.yaml: strict reading, with file and line, and the template that explains every setting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from constrained_adapters.config.collapse import PreventCollapseConfig
from constrained_adapters.config.guard import GuardConfig
from constrained_adapters.config.run import DomainConfig, MethodConfig, RunConfig
from constrained_adapters.config.template import EXPLAINED, template
from constrained_adapters.config.yaml_file import absolute_source, dump_config, dump_value, read_config
from constrained_adapters.errors import ConfigError

SWITCHED = {"prevent_collapse": PreventCollapseConfig}
DOMAINS = "domains:\n  - {name: law, data: law.jsonl}\n"


@pytest.fixture
def read(tmp_path):
    def read_text(text: str | bytes) -> RunConfig:
        file = tmp_path / "crma.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_config(file)

    return read_text


@pytest.fixture
def refusal(read, tmp_path):
    """The error that a text meets, and where it was found, without the folder."""

    def refuse(text: str | bytes) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            read(text)
        caught.value.got = (caught.value.got or "").replace(str(tmp_path / "crma.yaml"), "crma.yaml")
        return caught.value

    return refuse


def test_an_unknown_key_names_the_nearest_one_and_its_line(refusal):
    error = refusal(DOMAINS + "training:\n  steps: 3\n  learning_rat: 1.0\n")
    assert error.what == "no setting named 'learning_rat'"
    assert error.got == "training.learning_rat (crma.yaml, line 5)"
    assert "batch_size" in error.expected
    assert error.hint == "learning_rate"


@pytest.mark.parametrize(
    ("text", "got", "expected", "hint"),
    [
        ("training:\n  steps: true\n", "training.steps = True (crma.yaml, line 4)", "a whole number", None),
        ("training:\n  steps: 1.5\n", "training.steps = 1.5 (crma.yaml, line 4)", "a whole number", None),
        ('training:\n  steps: "3"\n', "training.steps = '3' (crma.yaml, line 4)", "a whole number", None),
        ("training:\n  steps: 0\n", "training.steps = 0 (crma.yaml, line 4)",
         "greater than or equal to 1", None),
        ("training:\n\n  # a remark\n  batch_size: x\n", "training.batch_size = 'x' (crma.yaml, line 6)",
         "a whole number", None),
        ("training:\n  schedule: cosin\n", "training.schedule = 'cosin' (crma.yaml, line 4)",
         "'constant', 'linear', 'cosine' or 'staged'", "cosine"),
        ("adapter: {layers: 5}\n", "adapter.layers = 5 (crma.yaml, line 3)", "a list, or 'auto'", None),
        ("adapter:\n  layers: [q_proj, 1]\n", "adapter.layers = 1 (crma.yaml, line 4)", "a text, or 'auto'",
         'put it in quotes: "1"'),
        ("methods: [{recipe: crma, protect_base: yes}]\n",
         "methods[0].protect_base = 'yes' (crma.yaml, line 3)", "true or false", "true"),
        ("methods:\n  - lora\n  - recipe: crma\n    constraint_strength: 1.5\n",
         "methods[1].constraint_strength = 1.5 (crma.yaml, line 6)",
         "less than or equal to 1, or 'auto'", None),
        ("training: 5\n", "training = 5 (crma.yaml, line 3)", "a section with its settings below it", None),
        ("methods: []\n", "methods = [] (crma.yaml, line 3)", "at least one", None),
        ("base:\n  model: 7\n", "base.model = 7 (crma.yaml, line 4)", "a text", 'put it in quotes: "7"'),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_line_and_what_was_expected(refusal, text, got, expected, hint):
    error = refusal(DOMAINS + text)
    assert error.what.endswith("is not valid")
    assert (error.got, error.expected, error.hint) == (got, expected, hint)


@pytest.mark.parametrize(
    ("text", "what", "got"),
    [
        ("seed: 1\n", "the setting 'domains' is missing", "crma.yaml, line 1"),
        ("seed: 1\ndomains:\n  - data: x\n", "the setting 'domains[0].name' is missing", "crma.yaml, line 3"),
        (DOMAINS + "training: {steps: 1, epochs: 2}\n", "give 'steps' or 'epochs', not both",
         "training (crma.yaml, line 3)"),
        (DOMAINS + "methods: [crma, crma]\n", "named twice: 'crma' (case alone is no difference)",
         "methods (crma.yaml, line 3)"),
        ("domains:\n  - {name: a, data: x}\n  - {name: ../b, data: y}\n",
         "'../b' cannot be a domain's name: use letters, digits, '_', '-' and inner spaces",
         "domains[1].name (crma.yaml, line 3)"),
        (DOMAINS + "seed: 1\ntitle: a\nseed: 2\n", "the setting 'seed' is there twice",
         "crma.yaml, line 3 and line 5"),
        (DOMAINS + "training:\n  steps: 1\n  steps: 2\n", "the setting 'steps' is there twice",
         "crma.yaml, line 4 and line 5"),
        ("", "a crma.yaml is a list of settings", "crma.yaml is empty"),
        ("- 1\n", "a crma.yaml is a list of settings", "crma.yaml, line 1"),
        (DOMAINS + "3: 4\n", "the setting '[3]' is not valid", "[3] = 3 (crma.yaml, line 1)"),
    ],
)  # fmt: skip
def test_what_is_missing_double_or_contradictory_is_refused(refusal, text, what, got):
    error = refusal(text)
    assert (error.what, error.got) == (what, got)


@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("a: [\n", "line 2, column 1", None),
        ("seed: 1\n\ttitle: 2\n", "line 2, column 1", "replace the tab by spaces"),
        ("title: !!python/object:os.system x\n", "line 1, column 8", None),
        ("title: \x01\n", "line 1", None),
        ("seed: 1\n---\nseed: 2\n", "line 2, column 1", None),
    ],
)
def test_what_is_no_yaml_is_refused_with_line_and_column(refusal, text, place, hint):
    error = refusal(text)
    assert error.what == "the file is not valid YAML"
    assert error.got.endswith(f"(crma.yaml, {place})")
    assert error.hint == hint


def test_other_encodings_are_refused_with_the_line(refusal):
    error = refusal("seed: 1\ntitle: Право\n".encode("cp1251"))
    assert error.what == "the file is not UTF-8 text"
    assert error.got == "byte 0xcf (crma.yaml, line 2)"


def test_a_byte_order_mark_is_no_error(read):
    assert read(b"\xef\xbb\xbf" + DOMAINS.encode()).domains[0].name == "law"


def test_a_misspelt_key_is_said_before_the_one_that_is_missing(refusal):
    error = refusal(DOMAINS + "methods: [{recip: crma}]\n")
    assert (error.what, error.hint) == ("no setting named 'recip'", "recipe")


def test_a_key_of_another_section_is_sent_there(refusal):
    assert refusal(DOMAINS + "learning_rate: 1.0\n").hint == "training.learning_rate"
    assert refusal(DOMAINS + "base: {seed: 3}\n").hint == "'seed' at the top, not inside a section"


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "crma.yaml").write_text(DOMAINS)
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "crma.yml")
    assert caught.value.what == "there is no such file"
    assert caught.value.hint == str(tmp_path / "crma.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E+2", 100.0), (".5", 0.5), ("2", 2.0), ("-0x1", None), ("1_0", None)],
)
def test_numbers_are_those_of_yaml_1_2(read, text, value):
    if value is None:
        with pytest.raises(ConfigError, match="a number"):
            read(DOMAINS + f"training: {{learning_rate: {text}}}\n")
    else:
        assert read(DOMAINS + f"training: {{learning_rate: {text}}}\n").training.learning_rate == value


def test_words_stay_words(read):
    config = read("domains:\n  - {name: no, data: x}\n  - {name: 数学, data: y}\ntitle: 2024-01-01\n")
    assert [domain.name for domain in config.domains] == ["no", "数学"]
    assert config.title == "2024-01-01"


def test_a_section_of_comments_keeps_its_defaults(read):
    assert read(DOMAINS + "training:\n  # steps: 3\n").training.epochs == 3.0


def test_paths_are_relative_to_the_file(read, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "model").mkdir()
    config = read(
        "output: run\nbase: {model: model}\ndomains:\n  - {name: a, data: a.jsonl}\n"
        "  - {name: b, train: ./b, test: ../c}\n  - {name: c, data: owner/set}\n"
        "  - {name: d, data: packaged:law}\n"
    )
    assert config.output == tmp_path / "run"
    assert config.base.model == str(tmp_path / "model")
    assert [domain.data for domain in config.domains] == [
        str(tmp_path / "a.jsonl"), None, "owner/set", "packaged:law",
    ]  # fmt: skip
    assert (config.domains[1].train, config.domains[1].test) == (
        str(tmp_path / "b"), str(tmp_path.parent / "c"),
    )  # fmt: skip
    assert config.evaluation.general == "packaged:general"


def test_a_text_too_long_for_a_path_is_no_path(tmp_path):
    assert absolute_source("x" * 5000, tmp_path) == "x" * 5000


def test_a_dumped_configuration_reads_back_the_same(read):
    config = read(
        "title: 'no: 1e3 # x'\nmethods: [lora, {recipe: crma, name: strict, constraint_strength: 0.9}]\n"
        "training: {steps: 7, learning_rate: 1e-5}\n"
        "domains: [{name: '1', data: 'a, b}.jsonl'}, {name: Право, data: x}]\n"
    )
    assert read(dump_config(config)) == config


@pytest.mark.parametrize(
    "value", ["no", "1e3", "", "a: b", "- x", "null", "ⅷ", 3, 0.001, 1e-7, True, None, ["a, b", 2]]
)
def test_a_dumped_value_reads_back_the_same(value):
    from constrained_adapters.config.yaml_file import _Loader

    text = dump_value({"key": value})
    assert "\n" not in text
    assert yaml.load(text, Loader=_Loader) == {"key": value}


def fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        of_lists = {"methods": MethodConfig, "domains": DomainConfig, "guard": GuardConfig, **SWITCHED}
        inner = field.annotation if prefix else of_lists.get(name, field.annotation)
        nested = isinstance(inner, type) and issubclass(inner, BaseModel)
        names |= fields(inner, f"{name}.") if nested else {prefix + name}
        names |= {name} & set(SWITCHED)
    return names


def test_every_setting_is_explained_and_nothing_else():
    assert set(EXPLAINED) == fields(RunConfig)


def test_the_demo_reads_as_it_stands(read):
    config = read(template())
    assert [domain.data for domain in config.domains] == [
        "packaged:medicine", "packaged:finance", "packaged:programming",
    ]  # fmt: skip
    assert [method.recipe for method in config.methods] == ["lora", "crma"]
    assert config.training.steps == 30


def test_what_the_template_shows_as_default_is_the_default():
    sections = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    sections |= {"methods": MethodConfig, "domains": DomainConfig, "guard": GuardConfig, **SWITCHED}
    section, shown, active = "", {}, set()
    for line in template().splitlines():
        if found := re.fullmatch(r"(\w+):", line):
            section = found[1]
        elif (switch := line.partition(":")[0]) in SWITCHED:
            section = switch
            active.add(switch)
        elif found := re.fullmatch(r"  # (?:- |  )?(\w+): (\S.*?) {2,}# \S.*", line):
            shown[section, found[1]] = yaml.safe_load(found[2])
        elif found := re.fullmatch(r"(  )?(\w+): .* {2,}# \S.*", line):
            active.add(f"{section}.{found[2]}" if found[1] else found[2])
    assert active | {".".join(key) for key in shown} == set(EXPLAINED)
    for (section, name), value in shown.items():
        field = sections[section].model_fields[name]
        assert value == ({"recipe": "crma", "name": "law"}[name] if field.is_required() else field.default)


def test_own_domains_keep_their_order_and_odd_paths(read):
    domains = {"Право": "данные, 1}.jsonl", "no": "packaged:law"}
    config = read(template(domains, base="owner/model"))
    assert [domain.name for domain in config.domains] == ["Право", "no"]
    assert Path(config.domains[0].data).name == "данные, 1}.jsonl"
    assert (config.base.model, config.training.epochs) == ("owner/model", 3.0)


def test_the_guard_is_off_until_one_of_its_lines_is_active(read, refusal):
    assert read(template()).guard is None
    config = read(template().replace("  # action: stop ", "  action: roll_back "))
    assert config.guard == GuardConfig(action="roll_back")
    assert read(f"{DOMAINS}guard: {{max_increase: {{Право: 0.2}}}}\n").guard.limit("Право") == 0.2
    assert read(dump_config(config)) == config
    error = refusal(f"{DOMAINS}guard:\n  actoin: stop\n")
    assert (error.what, error.hint) == ("no setting named 'actoin'", "action")
    error = refusal(f"{DOMAINS}guard: {{action: strengthen, rate_factor: 0.2}}\n")
    assert "'rate_factor' has no effect with action: strengthen" in error.what
    error = refusal(f"{DOMAINS}guard:\n  action: roll_bak\n")
    assert (error.what, error.hint) == ("the setting 'guard.action' is not valid", "roll_back")


def test_prevent_collapse_is_a_word_or_a_section(read):
    assert read(DOMAINS).collapse_settings is None
    assert read(f"{DOMAINS}prevent_collapse: true\n").collapse_settings == PreventCollapseConfig()
    config = read(f"{DOMAINS}prevent_collapse:\n  label_smoothing: 0.2\n")
    assert config.collapse_settings.label_smoothing == 0.2
    assert read(dump_config(config)) == config


@pytest.mark.parametrize(
    "section", ["{check_every_steps: 5}", "{guard: false}", "{remedies: [new_order]}", "{warmup_ratio: null}"]
)
def test_what_a_run_writes_down_of_prevent_collapse_can_be_read_again(read, section):
    config = read(f"{DOMAINS}prevent_collapse: {section}\n")
    assert read(dump_config(config)) == config


def test_a_misspelt_setting_of_prevent_collapse_is_named(refusal):
    error = refusal(f"{DOMAINS}prevent_collapse:\n  time_shar: 0.2\n")
    assert (error.what, error.hint) == ("no setting named 'time_shar'", "time_share")
    assert error.got == "prevent_collapse.time_shar (crma.yaml, line 4)"


def test_too_few_prompts_say_how_many_are_needed(refusal):
    error = refusal(f"{DOMAINS}prevent_collapse:\n  prompts: [why, how, how]\n")
    assert error.what.startswith(
        "prompts: 2 different ones are too few for a stable estimate: give 8 or more"
    )


def test_a_wrong_word_for_prevent_collapse_is_met_with_both_forms(refusal):
    error = refusal(f"{DOMAINS}prevent_collapse: maybe\n")
    assert error.got == "prevent_collapse = 'maybe' (crma.yaml, line 3)"
    assert "a section" in error.expected
