"""Reads gin files into bindings with their places, so that errors can name file and line."""

import dataclasses
import functools
import io
import itertools
import pathlib
import shlex
import tokenize
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gin import config_parser

from gkd.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_SHOWN = 80  # characters of a token that an error shows


class ConfigError(UserError, ValueError):
    """A configuration that cannot run; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/module.function`, or its result when written with `()`."""

    scope: str
    selector: str
    evaluate: bool

    def __repr__(self) -> str:
        scope = f"{self.scope}/" if self.scope else ""
        return f"@{scope}{self.selector}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where bindings stand: a gin file, or one `--gin.` argument (which shows no line)."""

    name: str
    imports: list[config_parser.ImportStatement]
    path: pathlib.Path | None = None

    def place(self, line: int) -> str:
        """The place as a person looks for it: `configs/runs/x.gin:7` or `--gin.X=1`."""
        return f"{self.name}:{line}" if self.path else self.name


@dataclasses.dataclass(frozen=True)
class Binding:
    """One `scope/selector.parameter = value`, or `MACRO = value` (parameter is empty)."""

    scope: str
    selector: str
    parameter: str
    value: Any  # Python literals, with Reference and Macro inside
    source: Source
    line: int

    @property
    def place(self) -> str:
        """Where it is written."""
        return self.source.place(self.line)

    @functools.cached_property
    def macro(self) -> str | None:
        """The macro's name, when this sets a macro."""
        if self.parameter and self.selector != "gin.macro":
            return None
        scope = f"{self.scope}/" if self.scope else ""
        return self.scope if self.selector == "gin.macro" else scope + self.selector

    @functools.cached_property
    def key(self) -> str:
        """What it sets, in gin's spelling."""
        scope = f"{self.scope}/" if self.scope else ""
        return self.macro or f"{scope}{self.selector}.{self.parameter}"

    @property
    def text(self) -> str:
        """The binding as a line of gin."""
        scope = f"{self.scope}/" if self.scope else ""
        parameter = f".{self.parameter}" if self.parameter else ""
        return f"{scope}{self.selector}{parameter} = {self.value!r}"

    @functools.cached_property
    def target(self) -> str:
        """What it sets, whatever a file calls the module: the same for all spellings."""
        name, _, rest = self.key.rpartition("/")[2].partition(".")
        for statement in reversed(self.source.imports):
            if not self.macro and statement.bound_name() == name:
                whole = statement.is_from or statement.alias
                return f"{self.scope}/{statement.module if whole else name}.{rest}"
        return self.key


class _Delegate:
    """Leaves references and macros unresolved: the check resolves them, with better errors."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Reference | Macro:
        scope, selector = config_parser.parse_scoped_selector(scoped_selector)
        if selector == "gin.macro":
            return Macro(scope)
        return Reference(scope, selector, evaluate)

    def macro(self, name: str) -> Macro:
        return Macro(name)


def references_in(value: Any, kinds: Any = Reference | Macro) -> Iterator[Any]:
    """All references and macros inside a value, however nested; or what is of other kinds."""
    if isinstance(value, kinds):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from references_in(key, kinds)
            yield from references_in(item, kinds)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references_in(item, kinds)


@functools.lru_cache(maxsize=1024)  # a sweep reads the same files for each of its cells
def parse_statements(text: str, name: str, show_line: bool = True) -> tuple[Any, ...]:
    """Parses gin text into gin's own statements.

    Args:
      text: gin statements.
      name: what errors call the text: a file name or an argument.
      show_line: whether errors add the line to `name`.

    Returns:
      Import, include, binding and block statements of `gin.config_parser`.

    Raises:
      ConfigError: a syntax error, in one line with its place.
    """

    def fail(line: int | None, message: str) -> ConfigError:
        place = f"{name}:{line}" if show_line and line else name
        return ConfigError(f"{place}: {message}")

    try:
        return tuple(config_parser.ConfigParser(io.StringIO(text), _Delegate()))
    except RecursionError:
        raise fail(None, "brackets are nested too deeply") from None
    except TypeError as error:  # a list as a key of a dictionary
        raise fail(None, f"syntax error: {error}") from None
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise fail(line, f"syntax error: {message}") from None
    except SyntaxError as error:
        message, _, token = str(error.msg).partition("Failed to parse token ")
        if not token:
            raise fail(error.lineno, f"syntax error: {' '.join(message.split())}") from None
        raise fail(
            error.lineno,
            f"{_shortened(token)} is not a gin value: text needs quotes, a macro %, a function @",
        ) from None


def _shortened(token: str) -> str:
    return token if len(token) <= _SHOWN else f"{token[:_SHOWN]}…"


def resolve_gin_file(path: str) -> pathlib.Path:
    """Finds a `--gin_file`: in the current directory, else in the repository.

    Raises:
      ConfigError: it is in neither.
    """
    for folder in (pathlib.Path.cwd(), REPOSITORY):
        if (folder / path).is_file():
            return (folder / path).resolve()
    raise ConfigError(
        f"--gin_file={path}: no such file, neither here nor in the repository ({REPOSITORY})"
    )


def display_name(path: pathlib.Path) -> str:
    """A path as errors show it: relative to the repository where it lies inside."""
    return str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)


class GinReader:
    """Collects the bindings of gin files in the order in which they hold: the last of a key wins.

    An include of a file that was read already is passed over, so that a method file that follows
    a run file does not set everything back to the defaults that both include. A file named on the
    command line is read where it is named.

    `bindings` holds all of them, `sources` all files. Reading checks syntax, includes and order
    only.
    """

    def __init__(self) -> None:
        self.bindings: list[Binding] = []
        self.sources: list[Source] = []
        self._latest: dict[str, Binding] = {}
        self._visited: set[pathlib.Path] = set()

    def read_file(self, path: pathlib.Path, including: Sequence[Source] = ()) -> None:
        """Reads one file and what it includes.

        Args:
          path: absolute path of the file.
          including: the files that led here, outermost first.

        Raises:
          ConfigError: syntax error, missing include, an include in a circle, or one that
            would undo a line above it.
        """
        source = Source(display_name(path), [], path)
        if path in (outer.path for outer in including):
            raise ConfigError(f"{including[-1].name}: includes {source.name}, which includes it")
        if including and path in self._visited:
            return
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{source.name}: not UTF-8 text ({error.reason} at byte {error.start})"
            ) from None
        self._visited.add(path)
        self.sources.append(source)
        for statement in parse_statements(text, source.name):
            line = statement.location.line_num
            if isinstance(statement, config_parser.IncludeStatement):
                included = REPOSITORY / statement.filename  # an absolute path stays absolute
                if not included.is_file():
                    raise ConfigError(
                        f'{source.place(line)}: include "{statement.filename}": no such file '
                        f"(includes are looked up from {REPOSITORY})"
                    )
                self.read_file(included.resolve(), (*including, source))
            elif isinstance(statement, config_parser.ImportStatement):
                source.imports.append(statement)
            elif isinstance(statement, config_parser.BindingStatement):
                self._add(Binding(*statement[:4], source, line), including)

    def read_override(self, argument: str, imports: Sequence[Any]) -> None:
        """Reads one `--gin.` argument.

        Args:
          argument: `NAME=VALUE`, without the leading `--gin.`.
          imports: the import statements whose names it may use.

        Raises:
          ConfigError: not a binding, or a value that gin cannot read.
        """
        key, equals, value = argument.partition("=")
        name = f"--gin.{argument}"
        if not equals or not key:
            raise ConfigError(f"{name}: write --gin.NAME=VALUE")
        try:
            statements = parse_statements(f"{key} = {value}", name, show_line=False)
        except ConfigError as error:
            quoted = shlex.quote(f'--gin.{key}="{value}"')
            raise ConfigError(f"{error} (if it is text: {quoted})") from None
        if len(statements) != 1 or not isinstance(statements[0], config_parser.BindingStatement):
            raise ConfigError(f"{name}: write one binding, --gin.NAME=VALUE")
        self._add(Binding(*statements[0][:4], Source(name, list(imports)), 1), ())

    def final_bindings(self) -> list[Binding]:
        """The bindings that hold after all overriding."""
        return list(self._latest.values())

    def value_of(self, key: str) -> Any:
        """The literal that a macro or parameter ends up with, through macros that name others.

        Args:
          key: as `Binding.target` spells it.

        Returns:
          The value; a Reference where it is a function, None where nothing sets the key.
        """
        binding = self._latest.get(key)
        value = binding and binding.value
        return self.value_of(value.name) if isinstance(value, Macro) else value

    def replace_values(self, change: Callable[[Any], Any]) -> None:
        """Changes the values that hold; what is overridden stays as it is."""
        for number, binding in enumerate(self.bindings):
            if self._latest[binding.target] is binding:
                changed = dataclasses.replace(binding, value=change(binding.value))
                self.bindings[number] = self._latest[binding.target] = changed

    def gin_texts(self) -> Iterator[str]:
        """What was read as texts for `gin.parse_config`, in order; each with its own imports."""
        for source in self.sources:
            yield _import_lines(source)
        for _, group in itertools.groupby(self.bindings, lambda binding: id(binding.source)):
            bindings = list(group)
            yield _import_lines(bindings[0].source) + "".join(f"{b.text}\n" for b in bindings)

    def _add(self, binding: Binding, including: Sequence[Source]) -> None:
        """Adds a binding, unless an include undoes silently what was set on purpose."""
        before = self._latest.get(binding.target)
        if before and before.value != binding.value and before.source in including:
            raise ConfigError(
                f"{before.place}: sets {binding.key}, but a later include sets it again "
                f"({binding.place}): put includes first"
            )
        self._latest[binding.target] = binding
        self.bindings.append(binding)


def _import_lines(source: Source) -> str:
    return "".join(f"{statement.format()}\n" for statement in source.imports)
