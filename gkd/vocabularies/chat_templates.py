"""Renders chats by the Jinja template of a tokenizer's folder, in the sandbox of transformers.

A template comes with a checkpoint and is code: it runs in Jinja's sandbox, whose loops over ranges,
products and output are bounded. Pure Python.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile, InvalidValue, MissingFile
from gkd.files.json_files import read_json, shown
from gkd.files.lfs_pointers import refuse_lfs_pointer

TEMPLATE_FILE = "chat_template.jinja"
LEGACY_FILE = "chat_template.json"  # of processors of images and text
ROLES = ("system", "developer", "user", "assistant", "tool")
LARGEST_TEMPLATE = 1_000_000  # characters; published ones have at most tens of thousands
LARGEST_TEXT = 10_000_000  # characters of a rendered chat
# Prompts of a task stay what they are from day to day, or no run could be continued.
TASK_DATE = datetime.datetime(2024, 7, 26)  # that of Llama 3's template where there is no clock
_MOST_ITEMS = 1_000_000  # of all ranges of one rendering, and of a product


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template, and the texts of the special tokens that it may name.

    Attributes:
      source: file that holds it, for messages.
      text: the template; None where the file holds several and none of them is the default.
      tokens: names and texts of special tokens: (("bos_token", "<s>"), …).
    """

    source: str
    text: str | None
    tokens: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The chat that a task's prompt becomes: one user message, before it a system message if set.

    Attributes:
      template: the vocabulary's template.
      system: text of the system message; None for none of the task's own.
      options: further variables of the template, e.g. (("enable_thinking", False),).
    """

    template: ChatTemplate
    system: str | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        for name in ("template", "messages", "add_generation_prompt", "date"):
            if name in dict(self.options):
                raise InvalidValue(
                    f"CHAT_OPTIONS has {name!r}, which the task itself sets: leave it out"
                )

    def render(self, prompts: Sequence[str]) -> list[str]:
        """Renders every prompt through the start of the assistant's turn.

        Raises:
          InvalidFile, InvalidValue: see `render_chat`.
        """
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [
            render_chat(
                self.template,
                [*before, {"role": "user", "content": prompt}],
                add_generation_prompt=True,
                date=TASK_DATE,
                **dict(self.options),
            )
            for prompt in prompts
        ]


def read_chat_template(folder: Any, configured: Any) -> tuple[str, str | None] | None:
    """Finds the chat template of a tokenizer: its own file, or in tokenizer_config.json.

    Args:
      folder: path of the folder (pathlib or epath).
      configured: value of chat_template in tokenizer_config.json, or None.

    Returns:
      The file and the template (None where none of several is named default); None without one.

    Raises:
      InvalidFile: a file is damaged, or the template is not a text.
    """
    path = folder / TEMPLATE_FILE
    if path.exists():
        refuse_lfs_pointer(path)
        try:
            return str(path), _checked(path.read_bytes().decode(), path)
        except UnicodeDecodeError as error:
            raise InvalidFile(f"{path} is not UTF-8 (byte {error.start})") from error
    source = folder / "tokenizer_config.json"
    if configured is None and (folder / LEGACY_FILE).exists():
        source = folder / LEGACY_FILE
        configured = read_json(source, dict).get("chat_template")
    if configured is None:
        return None
    if isinstance(configured, list):
        if not all(isinstance(each, dict) for each in configured):
            raise InvalidFile(f"{source}: chat_template is {shown(configured)}: name and template")
        named = {str(each.get("name")): each.get("template") for each in configured}
        only = next(iter(named.values())) if len(named) == 1 else None
        configured = named.get("default", only)
        if configured is None:
            return str(source), None
    return str(source), _checked(configured, source)


def _checked(text: Any, source: Any) -> str:
    if not isinstance(text, str) or len(text) > LARGEST_TEMPLATE:
        raise InvalidFile(
            f"{source}: chat_template is {shown(text)}: a text of at most {LARGEST_TEMPLATE} "
            "characters is needed"
        )
    return text


def chat_template_of(vocabulary: Any) -> ChatTemplate:
    """Returns the chat template of a vocabulary's folder.

    Args:
      vocabulary: a seqio vocabulary.

    Raises:
      MissingFile: the folder has none, or the vocabulary is none of a folder.
      InvalidValue: no id that ends outputs ends the assistant's turn.
    """
    files = getattr(vocabulary, "files", None)
    if files is None or files.chat_template is None:
        where = "the vocabulary" if files is None else f"{files.folder}"
        raise MissingFile(
            f"{where} has no chat template ({TEMPLATE_FILE}, or chat_template in "
            "tokenizer_config.json): take the tokenizer of an instruction-tuned model, or give "
            "plain text"
        )
    turn, ends = getattr(vocabulary, "turn_ids", ()), getattr(vocabulary, "end_ids", ())
    if turn and not set(turn) & set(ends):
        named = " and ".join(repr(vocabulary.decode_ids([i])) for i in ends)
        raise InvalidValue(
            f"{files.folder}: the chat template ends the assistant's turn with "
            f"{vocabulary.decode_ids(turn)!r}, but outputs end with {named}: take the "
            "instruction-tuned model's folder, or name its id in generation_config.json"
        )
    return files.chat_template


def render_chat(
    template: ChatTemplate | str,
    messages: Any,
    add_generation_prompt: bool = False,
    date: datetime.datetime | None = None,
    **variables: Any,
) -> str:
    """Renders a chat as transformers' `apply_chat_template` does.

    Args:
      template: the template, or its text.
      messages: the turns, a list of mappings with `role` and `content`.
      add_generation_prompt: also write the start of the assistant's turn.
      date: the date that a template may write; None is today.
      **variables: further variables of the template, e.g. enable_thinking.

    Returns:
      The text, with its special tokens.

    Raises:
      InvalidValue: messages are empty, or a message has no role or content.
      InvalidFile: the template is wrong, raises, or leaves the bounds.

    >>> template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\\n{% endfor %}"
    >>> render_chat(template, [{"role": "user", "content": "Hi"}])
    '[user] Hi\\n'
    """
    if isinstance(template, str):
        template = ChatTemplate("the chat template", template)
    if template.text is None:
        raise InvalidFile(f"{template.source} has several chat templates, none named 'default'")
    check_messages(messages)
    parts, size = [], 0
    values = {
        **dict(template.tokens),
        "messages": [dict(message) for message in messages],
        "tools": None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "strftime_now": (datetime.datetime.now() if date is None else date).strftime,
        **variables,
    }
    try:
        compiled = _compiled(template.text)
        for part in compiled.generate(values, range=_bounded_range()):
            parts.append(part)
            size += len(part)
            if size > LARGEST_TEXT:
                raise OverflowError(f"more than {LARGEST_TEXT} characters")
    except Exception as error:  # templates are foreign code: they may raise anything
        cause = " ".join(str(error).split()) or type(error).__name__
        line = getattr(error, "lineno", None)
        place = f", line {line} of the template" if line else ""
        raise InvalidFile(f"{template.source}: the chat template fails{place}: {cause}") from error
    return "".join(parts)


def check_messages(messages: Any, where: str = "messages") -> None:
    """Checks the turns of a chat.

    Args:
      messages: anything.
      where: place of the chat, for the message.

    Raises:
      InvalidValue: it is no list of messages with a known role and a text; one line.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidValue(
            f"{where}: {shown(messages)}: a list of messages, each with role and content, is needed"
        )
    for number, message in enumerate(messages, start=1):
        place = f"{where}: message {number}"
        if not isinstance(message, Mapping):
            raise InvalidValue(f"{place} is {shown(message)}: an object with role and content")
        for name in ("role", "content"):
            if name not in message:
                raise InvalidValue(f"{place} has no {name}; it has {', '.join(message) or 'none'}")
        if message["role"] not in ROLES:
            raise InvalidValue(
                f"{place} has role {shown(message['role'])}: use one of {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str):
            raise InvalidValue(f"{place} has content {shown(message['content'])}: a text is needed")


@functools.lru_cache(maxsize=16)
def _compiled(text: str) -> Any:
    return _environment().from_string(text)


@functools.cache
def _environment() -> Any:
    """The environment of transformers' chat templates."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag around the assistant's text, which only training masks read."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    class Environment(ImmutableSandboxedEnvironment):
        """Refuses products that would fill the memory."""

        intercepted_binops = frozenset(["*", "**", "%"])

        def call_binop(self, context, operator, left, right):
            if operator == "%":
                if isinstance(left, str) and re.search(r"\d{5}|\*", left):
                    raise OverflowError(f"{left!r:.20} pads too much")
                return super().call_binop(context, operator, left, right)
            numbers = all(isinstance(each, int | float) for each in (left, right))
            if operator == "**" or not numbers:
                sizes = [each if isinstance(each, int) else len(each) for each in (left, right)]
                if operator == "**" or sizes[0] * sizes[1] > _MOST_ITEMS:
                    raise OverflowError(f"{operator} of {left!r:.20} and {right!r:.20}: too large")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)  # fmt: skip

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    return environment


def _bounded_range():
    """A `range` whose items are bounded over a whole rendering, also in nested loops."""
    left = _MOST_ITEMS

    def bounded(*arguments):
        nonlocal left
        items = range(*arguments)
        left -= len(items)
        if left < 0:
            raise OverflowError(f"its loops have more than {_MOST_ITEMS} steps")
        return items

    return bounded
