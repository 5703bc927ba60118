"""Good files become records; thirty broken ones are refused with a line and a fix; hostile ones do nothing at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.config import Strict, dump, find, load, loads
from ldm.config.reader import read, write
from ldm.errors import Code, LdmError
from tests.config.broken import BROKEN, GOOD, Config, changed


def refused(text: str | bytes, overrides: tuple[str, ...] = ()) -> LdmError:
    with pytest.raises(LdmError) as caught:
        loads(text, Config, overrides, name="configs/x.yaml")
    return caught.value


def test_a_good_file_becomes_a_frozen_record(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    config = load(tmp_path / "a.yaml", Config)
    assert config.task.type == "diffusion" and config.model.unet.channels == 32 and config.model.unet.heads == 4
    assert (
        config.run.out == Path("runs/a")
        and config.run.betas == (0.9, 0.95)
        and [u.channels for u in config.stages] == [8, 16]
    )
    with pytest.raises(ValueError, match="frozen"):
        config.run.steps = 3  # type: ignore[misc]


def test_numbers_words_and_dates_mean_what_they_look_like() -> None:
    data = read(
        "a: 1e-4\nb: 2026-01-02\nc: yes\nd: 010\ne: ~\nf: 1_000\ng: 1:30\nh: '3'\ni: -2\nj: .5\nk: No\n", "x"
    ).data
    assert data == {
        "a": 1e-4,
        "b": "2026-01-02",
        "c": "yes",
        "d": 10,
        "e": None,
        "f": "1_000",
        "g": "1:30",
        "h": "3",
        "i": -2,
        "j": 0.5,
        "k": "No",
    }


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_line_and_fix(name: str) -> None:
    text, line, what, fix = BROKEN[name]
    error = refused(text)
    assert error.code is Code.USAGE
    assert what in error.what and f"(configs/x.yaml line {line})" in error.what
    assert fix in error.fix and error.why


def test_there_are_thirty_broken_files_and_as_many_messages() -> None:
    assert len(BROKEN) >= 30
    assert len({refused(text).what for text, *_ in BROKEN.values()}) == len(BROKEN)


def test_all_mistakes_of_a_file_are_named_at_once() -> None:
    error = refused(changed("steps: 200", "steps: many").replace("chan", "shan"))
    assert "3 more" in error.why
    assert all(f"line {n})" in str(error) for n in (6, 10, 14, 15))


@pytest.mark.parametrize(
    "evil",
    [
        "!!python/object/apply:os.system ['touch canary']",
        "!!python/object/new:os.system ['touch canary']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!binary aGk=",
        "!<tag:yaml.org,2002:python/object/apply:os.system> [touch canary]",
        "!include /etc/passwd",
        "!!set {a}",
        "&a [1]",
        "*a",
        "${oc.env:CANARY_SECRET}",
        "${CANARY_SECRET}",
        "{<<: {steps: 3}, out: a}",
        "{? [a, b] : c}",
        "{!!python/name:os.system : c}",
    ],
)
def test_hostile_values_are_refused_and_do_nothing(evil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY_SECRET", "canary-value")
    text = (
        f"task: {{type: diffusion}}\nrun:\n  out: {evil}\n" if not evil.startswith("&") else f"task: {evil}\nrun: *a\n"
    )
    error = refused(text)
    assert error.code is Code.REFUSED
    assert "line 3)" in error.what or "line 2)" in error.what
    assert "canary-value" not in str(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "target: os.system",
        "_target_: os.system",
        "auto_map: {AutoModel: evil.Model}",
        "_attn_implementation_internal: a/b",
    ],
)
def test_keys_that_other_loaders_would_run_are_unknown_keys(line: str) -> None:
    error = refused(changed("  unet:", f"  {line}\n  unet:"))
    assert error.code is Code.USAGE and f"model.{line.split(':')[0]}: unknown key" in error.what


@pytest.mark.parametrize(
    ("text", "code", "what"),
    [
        (b"\xff\xfe\x00\x00", Code.FILE, "not a text file"),
        ("a: " + "x" * 1_000_001, Code.REFUSED, "bytes"),
        ("a: " + "[" * 20_000, Code.REFUSED, "nested too deep"),
        ("a: " + "[" * 50 + "]" * 50, Code.REFUSED, "nested too deep"),
        ("a: b\0c", Code.USAGE, "not valid YAML"),
        ('run: {out: "\\ud800"}', Code.USAGE, "configs/x.yaml"),
    ],
)
def test_bytes_that_are_no_run_file_are_refused(text: str | bytes, code: Code, what: str) -> None:
    error = refused(text)
    assert error.code is code and what in error.what and "configs/x.yaml" in error.what


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "nul\0"):
        with pytest.raises(LdmError) as caught:
            load(path, Config)
        assert caught.value.code is Code.FILE and str(path) in caught.value.what


def test_overrides_win_and_may_open_a_section() -> None:
    config = loads(
        GOOD,
        Config,
        ["run.steps=7", "model.unet.heads=2", "stages.1.channels=24", "run.betas=[0.5, 0.6]", "run.out=b=c"],
    )
    assert config.run.steps == 7 and config.model.unet.heads == 2 and config.stages[1].channels == 24
    assert config.run.betas == (0.5, 0.6) and config.run.out == Path("b=c")
    assert (
        loads("", Config, ["task.type=gan", "task.critic=a", "run.out=b"]).task
        == Config.model_validate({"task": {"type": "gan", "critic": "a"}, "run": {"out": "b"}}).task
    )


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("run.steps=many", "run.steps: many is not a whole number (override run.steps=many)"),
        ("run.stepz=3", "run.stepz: unknown key; did you mean steps? (override run.stepz=3)"),
        ("modle.unet.heads=3", "modle: unknown key; did you mean model? (override modle.unet.heads=3)"),
        ("run.steps", "not an override"),
        ("=3", "not an override"),
        ("run..steps=3", "not an override"),
        ("run.steps.low=3", "run.steps.low: has nothing below it (override run.steps.low=3)"),
        ("stages.2.channels=3", "stages.2: no such entry (override stages.2.channels=3)"),
        ("stages.x=3", "stages.x: no such entry"),
        ("run.out=!!python/name:os.system", "tag"),
        ("run.out=[", "not valid YAML"),
    ],
)
def test_a_bad_override_is_named_instead_of_a_line(override: str, what: str) -> None:
    assert what in refused(GOOD, (override,)).what


def test_a_record_written_out_reads_back_equal() -> None:
    config = loads(GOOD, Config)
    assert loads(dump(config), Config) == config
    assert "heads: 4" in dump(config)  # defaults are written out


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1), PLAIN, max_size=4))
@settings(max_examples=150, deadline=None)
def test_plain_data_round_trips(data: dict[str, object]) -> None:
    round_trip(data)


@pytest.mark.torture
@given(st.dictionaries(st.text(min_size=1), PLAIN, max_size=6))
@settings(max_examples=10_000, deadline=None)
def test_plain_data_round_trips_often(data: dict[str, object]) -> None:
    round_trip(data)


def round_trip(data: dict[str, object]) -> None:
    text = write(data)
    if "${" in text or "<<" in text:
        return  # refused by design; see the hostile values
    assert read(text, "x").data == data


@given(st.text(max_size=60) | st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_record_or_one_error(text: str | bytes) -> None:
    a_record_or_one_error(text)


@pytest.mark.torture
@given(st.text("&*!|>-:[]{}#%@`?,'\"\\ \n\tab01.${}<~", max_size=40))
@settings(max_examples=10_000, deadline=None)
def test_any_yaml_is_a_record_or_one_error(text: str) -> None:
    a_record_or_one_error(text)


class Loose(Strict):
    a: int = 0


def a_record_or_one_error(text: str | bytes) -> None:
    try:
        loads(text, Loose)
    except LdmError as error:
        assert error.what and error.why and error.fix


def test_shipped_files_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "diffusion").mkdir()
    file = tmp_path / "diffusion" / "emoji-64.yaml"
    file.write_text(GOOD)
    for name in ("diffusion/emoji-64", "diffusion/emoji-64.yaml", "configs/diffusion/emoji-64.yaml", str(file)):
        assert find(name, tmp_path) == file
    with pytest.raises(LdmError, match="write diffusion/emoji-64"):
        find("diffusion/emojy-64", tmp_path)


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ([], "there is no file of that name, and none ships with this version"),
        (["b.yaml", "a/c.yaml"], "there is no file of that name, and shipped are a/c, b"),
    ],
)
def test_a_run_file_that_is_not_there_is_told_with_those_that_ship(tmp_path: Path, files: list[str], why: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(GOOD)
    with pytest.raises(LdmError) as caught:
        find("nothing like them", tmp_path)
    assert caught.value.why == why


def test_mistakes_are_told_in_the_order_of_the_file() -> None:
    with pytest.raises(LdmError, match=r"^b: unknown key.*line 1") as caught:
        loads("b: 1\na: x\n", Loose)
    assert "1 more: a: x is not a whole number (config line 2)" in caught.value.why
