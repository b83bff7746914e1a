"""Reads gin files into bindings that record file and line, for errors."""

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
# The folder that holds configs/: the repository, or the package where it was installed as a wheel.
_PACKAGE = REPOSITORY / "gkd"
CONFIGS_ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else REPOSITORY
_SHOWN = 80  # greatest number of characters of a token in an error message


class ConfigError(UserError, ValueError):
    """Raised for a configuration that cannot run; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """The value `@scope/module.function`, or with `()` its result."""

    scope: str
    selector: str
    evaluate: bool

    def __repr__(self) -> str:
        scope = f"{self.scope}/" if self.scope else ""
        return f"@{scope}{self.selector}{'()' if self.evaluate else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """The value `%NAME`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Source:
    """The source of bindings: a gin file, or one `--gin.` argument (without line numbers)."""

    name: str
    imports: list[config_parser.ImportStatement]
    path: pathlib.Path | None = None

    def place(self, line: int) -> str:
        """Renders a place for messages: `configs/runs/x.gin:7` or `--gin.X=1`."""
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
        """Source and line of the binding, for messages."""
        return self.source.place(self.line)

    @functools.cached_property
    def macro(self) -> str | None:
        """Name of the macro that it binds; None for a parameter."""
        if self.parameter and self.selector != "gin.macro":
            return None
        scope = f"{self.scope}/" if self.scope else ""
        return self.scope if self.selector == "gin.macro" else scope + self.selector

    @functools.cached_property
    def key(self) -> str:
        """Name of the bound macro or parameter, as spelt in the source."""
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
        """Full name of the bound macro or parameter, equal for all spellings of the module."""
        name, _, rest = self.key.rpartition("/")[2].partition(".")
        for statement in reversed(self.source.imports):
            if not self.macro and statement.bound_name() == name:
                whole = statement.is_from or statement.alias
                return f"{self.scope}/{statement.module if whole else name}.{rest}"
        return self.key


class _Delegate:
    """Leaves references and macros unresolved for `gin_check`, which has better errors."""

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Reference | Macro:
        scope, selector = config_parser.parse_scoped_selector(scoped_selector)
        if selector == "gin.macro":
            return Macro(scope)
        return Reference(scope, selector, evaluate)

    def macro(self, name: str) -> Macro:
        return Macro(name)


def references_in(value: Any, kinds: Any = Reference | Macro) -> Iterator[Any]:
    """Yields all references and macros inside a nested value, or values of other kinds.

    Args:
      value: any value, nested in dictionaries, lists and tuples.
      kinds: type or union of types to yield.
    """
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
      name: name of the text in errors: a file name or an argument.
      show_line: add the line number to `name` in errors.

    Returns:
      Import, include, binding and block statements of `gin.config_parser`.

    Raises:
      ConfigError: there is a syntax error; the text is one line with its place.
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


def resolve_gin_file(path: str, option: str = "--gin_file") -> pathlib.Path:
    """Finds a gin file in the current directory, else among those that come with gkd.

    Args:
      path: path on the command line.
      option: the option that names it, for the message.

    Returns:
      The absolute path.

    Raises:
      ConfigError: there is no such file.
    """
    for folder in (pathlib.Path.cwd(), CONFIGS_ROOT):
        if (folder / path).is_file():
            return (folder / path).resolve()
    raise ConfigError(
        f"{option}={path}: no such file, neither here nor in the repository ({CONFIGS_ROOT})"
    )


def _included(name: str, includer: pathlib.Path, place: str) -> pathlib.Path:
    """Finds an include among the files that come with gkd, else beside the file that names it."""
    for folder in (CONFIGS_ROOT, includer.parent):
        if (folder / name).is_file():  # an absolute path stays absolute
            return (folder / name).resolve()
    raise ConfigError(
        f'{place}: include "{name}": no such file, neither in {CONFIGS_ROOT} nor beside the file '
        "that includes it"
    )


def display_name(path: pathlib.Path) -> str:
    """Renders a path for errors, relative to the repository if it is inside."""
    return str(path.relative_to(CONFIGS_ROOT) if path.is_relative_to(CONFIGS_ROOT) else path)


class GinReader:
    """Collects the bindings of gin files in order of priority: the last one of a key wins.

    An include of a file that was read before is skipped, so that a method file after a run file
    does not reset the defaults that both include. A file on the command line is always read.

    `bindings` holds all bindings, `sources` all files. Reading checks syntax, includes and order
    only.
    """

    def __init__(self) -> None:
        self.bindings: list[Binding] = []
        self.sources: list[Source] = []
        self._latest: dict[str, Binding] = {}
        self._visited: set[pathlib.Path] = set()

    def read_file(self, path: pathlib.Path, including: Sequence[Source] = ()) -> None:
        """Reads a file and its includes.

        Args:
          path: absolute path of the file.
          including: the files that include it, outermost first.

        Raises:
          ConfigError: there is a syntax error, an include is missing or circular, or it would
            override a line above it.
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
                included = _included(statement.filename, path, source.place(line))
                self.read_file(included, (*including, source))
            elif isinstance(statement, config_parser.ImportStatement):
                source.imports.append(statement)
            elif isinstance(statement, config_parser.BindingStatement):
                self._add(Binding(*statement[:4], source, line), including)

    def read_override(self, argument: str, imports: Sequence[Any]) -> None:
        """Reads one `--gin.` argument.

        Args:
          argument: `NAME=VALUE`, without the leading `--gin.`.
          imports: import statements whose names it may use.

        Raises:
          ConfigError: the argument is no binding, or its value is not valid gin.
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
        """Lists the bindings that hold after all overrides."""
        return list(self._latest.values())

    def value_of(self, key: str) -> Any:
        """Determines the final value of a macro or parameter, following macros.

        Args:
          key: full name, see `Binding.target`.

        Returns:
          The value; a Reference for a function, None if the key is unbound.
        """
        binding = self._latest.get(key)
        value = binding and binding.value
        return self.value_of(value.name) if isinstance(value, Macro) else value

    def replace_values(self, change: Callable[[Any], Any]) -> None:
        """Changes the final values; overridden values stay unchanged.

        Args:
          change: function of a value to its replacement.
        """
        for number, binding in enumerate(self.bindings):
            if self._latest[binding.target] is binding:
                changed = dataclasses.replace(binding, value=change(binding.value))
                self.bindings[number] = self._latest[binding.target] = changed

    def gin_texts(self) -> Iterator[str]:
        """Yields texts for `gin.parse_config`, in order, each with its own imports."""
        for source in self.sources:
            yield _import_lines(source)
        for _, group in itertools.groupby(self.bindings, lambda binding: id(binding.source)):
            bindings = list(group)
            yield _import_lines(bindings[0].source) + "".join(f"{b.text}\n" for b in bindings)

    def _add(self, binding: Binding, including: Sequence[Source]) -> None:
        """Adds a binding, refusing an include that silently overrides an explicit value."""
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
