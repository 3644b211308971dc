"""YAML as people write it: every key once and as it is written, nothing that grows when it is read.

YAML's own rules turn the keys `on`, `no`, `1.0` and `null` into True, False, 1.0 and None, keep the last of two equal
keys without a word, and let a few lines of aliases stand for billions of values.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

LARGEST_FILE = 2**20
"""Bytes of a file of settings."""

LARGEST_CONTENT = 20_000
"""Values that it may stand for, aliases written out."""

DEEPEST = 64
"""Lists and mappings within each other."""

BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
"""What YAML 1.1 takes for a number to the base of 60, as 1:3:8."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses, with its line, what would not be read as it is meant."""

    depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Refuse to go down without end."""
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark
            raise _error(f"more than {DEEPEST} lists and mappings lie within each other", mark)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:  # noqa: ANN401
        """Take keys as they are written, each once; but for `<<`, which merges another mapping in."""
        node: MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _error("a key is a name, not a list or a mapping", key.start_mark)
            if key.value in lines:
                raise _error(f"the key {key.value} stands twice, first in line {lines[key.value]}", key.start_mark)
            lines[key.value] = key.start_mark.line + 1
            if not key.tag.endswith(":merge"):
                key.tag = self.DEFAULT_SCALAR_TAG
        return node

    def flatten_mapping(self, node: MappingNode) -> None:
        """Merge what `<<` names in: own keys win, then those of the first mapping; PyYAML keeps others at times."""
        merged: dict[str, tuple[Node, Node]] = {}
        own: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value:
            if not key.tag.endswith(":merge"):
                own[key.value] = (key, value)
                continue
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if not isinstance(source, MappingNode):
                    raise _error("<< merges mappings in, and this is none", source.start_mark)
                self.flatten_mapping(source)
                for pair in source.value:
                    merged.setdefault(pair[0].value, pair)
        node.value = list((merged | own).values())

    def get_single_node(self) -> Node | None:
        """The whole document, which stands for a limited number of values."""
        root: Node | None = super().get_single_node()
        if root is not None:
            _size(root, {})
        return root

    def construct_object(self, node: Node, deep: bool = False) -> Any:  # noqa: ANN401
        """Give a line to what Python says of a number or a date that is none."""
        if isinstance(node, ScalarNode) and node.style is None and BASE_60.fullmatch(node.value):
            raise _error(
                f"{node.value} is a number to the base of 60 in YAML: put it in quotes, or write a list",
                node.start_mark,
            )
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise _error(str(error), node.start_mark) from error


_StrictLoader.add_implicit_resolver(  # 1e-3, a text in YAML 1.1, is a number in YAML 1.2
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


def load(text: str) -> Any:  # noqa: ANN401
    r"""The content of one YAML document; all keys of its mappings are texts.

    Raises:
        yaml.YAMLError: with the line, for what is no YAML, and for what would not be read as it is meant.

    >>> load("on: {1.0: yes}")
    {'on': {'1.0': True}}
    >>> load("a: 1\nb: 2\na: 3")
    Traceback (most recent call last):
    ...
    yaml.error.YAMLError: line 3: the key a stands twice, first in line 1
    """
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise yaml.YAMLError(f"line {mark.line + 1}: {problem}" if mark else problem) from error


def read(path: Path) -> Any:  # noqa: ANN401
    """The content of a YAML file.

    Raises:
        OSError: if it cannot be read, or is too large for a file of settings.
        UnicodeDecodeError: if it is no text.
        yaml.YAMLError: as `load`.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise OSError(f"it has more than {LARGEST_FILE:,} bytes, which is no file of settings")
    return load(content.decode("utf-8"))


def _size(node: Node, known: dict[int, int | None]) -> int:
    """How many values a node stands for; refuses what contains itself, and too many.

    Args:
        node: of a graph, as aliases make it.
        known: sizes of nodes that have been counted; None of those that are being counted.
    """
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise _error("an alias stands within what it names", node.start_mark)
        return size
    known[id(node)] = None
    children = [part for pair in node.value for part in pair] if isinstance(node, MappingNode) else node.value
    parts = children if isinstance(node, MappingNode | SequenceNode) else []
    size = 1 + sum(_size(part, known) for part in parts)
    if size > LARGEST_CONTENT:
        raise _error(f"what begins here stands for more than {LARGEST_CONTENT:,} values", node.start_mark)
    known[id(node)] = size
    return size


def _error(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.YAMLError(f"line {mark.line + 1}: {problem}")
