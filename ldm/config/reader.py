"""The one door for YAML: plain data with the line of every key. Nothing in a file can run, import, point or expand.

The dialect is the JSON-like core of YAML 1.2: `yes` and `on` are words, `1e-4` is a number, dates are text. Tags,
anchors, aliases, merge keys, duplicate keys and `${...}` are refused: each has been used to surprise or to attack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ldm.errors import Code, LdmError

Path = tuple[str | int, ...]  # the way from the top to a value: ("model", "unet", "channels")
MAX_BYTES = 1_000_000
MAX_DEPTH = 32
PLAIN = "run files are plain data: no tags, anchors, aliases, merge keys or variables"
_YAML = "tag:yaml.org,2002:"

_PLAIN = {
    "null": re.compile(r"^(?:null|Null|NULL|~|)$"),
    "bool": re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"^[-+]?[0-9]+$"),
    "float": re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"),
    "nonfinite": re.compile(r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
}


@dataclass
class Document:
    """What a file says, and where it says it."""

    name: str
    data: dict[str, Any]
    places: dict[Path, str] = field(default_factory=dict)  # "configs/x.yaml line 12", or "override run.steps=2"

    def place(self, path: Path) -> str:
        """Where a value was written; for one that is missing, where its section begins."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.name)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; values are made by `_value`, never by YAML's constructors."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own attribute)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _Refused(f"*{event.anchor} is an alias", event.start_mark.line + 1, "write the value out")
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the texts that `_Loader` would not read back as text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Text with line separators or other invisible characters is quoted and escaped."""
        style = None if all(c.isprintable() for c in data) else '"'
        return self.represent_scalar(f"{_YAML}str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _cls in (_Loader, _Dumper):
    for _kind, _form in _PLAIN.items():
        _cls.add_implicit_resolver(f"{_YAML}{_kind}", _form, None)


class _Refused(Exception):  # noqa: N818  (becomes an LdmError as soon as the file name is known)
    def __init__(self, what: str, line: int, fix: str, why: str = PLAIN, code: Code = Code.REFUSED) -> None:
        super().__init__(what, line, fix, why, code)
        self.what, self.line, self.fix, self.why, self.code = what, line, fix, why, code


def read(text: str | bytes, name: str) -> Document:
    """Parse one YAML mapping; every mistake is an `LdmError` that names the line."""
    if len(text) > MAX_BYTES:
        raise LdmError(
            Code.REFUSED,
            f"{name}: {len(text)} bytes",
            f"a run file has at most {MAX_BYTES}",
            "give a run file instead of data",
        )
    try:
        words = text.decode("utf-8") if isinstance(text, bytes) else text
        node = yaml.compose(words, Loader=_Loader)
        document = Document(name, {}, {(): f"{name} line 1"})
        if node is not None:
            if not isinstance(node, yaml.MappingNode):
                what = (
                    "the file: a list is not a section"
                    if isinstance(node, yaml.SequenceNode)
                    else f"{_short(node.value)!r}: not a section"
                )
                raise _Refused(what, 1, "write key: value lines", "a run file consists of them", Code.USAGE)
            document.data = _value(node, (), document)
        return document
    except _Refused as error:
        raise LdmError(error.code, f"{error.what} ({name} line {error.line})", error.why, error.fix) from None
    except UnicodeDecodeError as error:
        why = f"byte {error.start} is not UTF-8"
        raise LdmError(Code.FILE, f"{name}: not a text file", why, "save it as UTF-8 text") from None
    except yaml.YAMLError as error:
        raise _syntax_error(error, name) from None
    except RecursionError:
        raise LdmError(Code.REFUSED, f"{name}: nested too deep", "brackets inside brackets", "write it flat") from None


def parse_value(text: str, name: str) -> Any:
    """One value, as it would be read after `key: ` in a file."""
    return read(f"value: {text}", name).data["value"]


def write(data: Mapping[str, Any]) -> str:
    """YAML that `read` gives back unchanged, in the order of the fields."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def _value(node: yaml.Node, path: Path, document: Document) -> Any:
    line = node.start_mark.line + 1
    if len(path) > MAX_DEPTH:
        raise _Refused(f"{_dotted(path)[:40]}...: nested too deep", line, "write it flat")
    kind = node.tag.removeprefix(_YAML)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        for i, item in enumerate(node.value):
            document.places[(*path, i)] = f"{document.name} line {item.start_mark.line + 1}"
        return [_value(item, (*path, i), document) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in ("str", *_PLAIN):
        return _scalar(node.value, kind, path, line)
    raise _Refused(f"{_dotted(path)}: tag {node.tag}", line, "remove the tag and write plain data")


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    found: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag.removeprefix(_YAML) not in ("str", *_PLAIN):
            raise _Refused("a key is not a plain word", line, "use plain words as keys")
        name = key.value
        if name == "<<":
            raise _Refused("<< merges sections", line, "write the keys out")
        if name in found:
            what = f"{_dotted((*path, name))}: written twice, first in line {first[name]}"
            raise _Refused(what, line, "keep one of the two", "only one of them could count", Code.USAGE)
        first[name] = line
        document.places[(*path, name)] = f"{document.name} line {line}"
        found[name] = _value(value, (*path, name), document)
    return found


def _scalar(text: str, kind: str, path: Path, line: int) -> str | int | float | bool | None:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int" and len(text) < 30:
        return int(text)
    if kind in ("int", "float", "nonfinite"):
        number = math.inf if kind == "nonfinite" else float(text)
        if not math.isfinite(number):
            raise _Refused(
                f"{_dotted(path)}: {_short(text)} is not a finite number",
                line,
                "give one",
                "only finite numbers can be computed with",
                Code.USAGE,
            )
        return number
    if "${" in text:
        raise _Refused(f"{_dotted(path)}: {_short(text)} asks for a variable", line, "write the value itself")
    return text


def _syntax_error(error: yaml.YAMLError, name: str) -> LdmError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = f"{name} line {mark.line + 1}" if mark is not None else name
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).strip()
    fix = (
        "indent with spaces"
        if "\\t" in problem
        else "close brackets and quotes, write key: value, and indent with spaces"
    )
    return LdmError(Code.USAGE, f"not valid YAML: {problem} ({place})", "the line cannot be read as key: value", fix)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the file"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
