"""Settings: typed, frozen, read once, passed in.

Precedence: command line, environment, settings file, default. A setting may have an alias, another name in the
environment, which other programs know it by; its own name comes before that.

    Settings                 shared by every process; env LARES_<NAME>, top-level keys of the settings file
    └ ServiceSettings        one subclass a service, with a `section`; LARES_<SECTION>_*, table [<section>]

Constructing a class reads nothing from outside, so a test is not at the mercy of the machine that it runs on;
`load_settings` reads, and remembers where each value came from for `describe`.
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from services.kit.address import Address
from services.kit.errors import FieldViolation, InvalidArgument

SERVICES = ("registry", "downloader", "inference", "speech", "trainer")
"""The five, in the order in which one process starts them: each may call those before it."""

SECTIONS = (*SERVICES, "gateway", "cli")
"""The tables that a settings file may have."""

ENV_PREFIX = "LARES_"

Source = Literal["command line", "environment", "alias", "file", "default"]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Type of a field that is a list of texts: an array in the settings file, `a,b` in the environment."""


class SettingsModel(BaseModel):
    """What `Settings` and `ServiceSettings` have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    section: ClassVar[str] = ""

    aliases: ClassVar[Mapping[str, str]] = {}
    """Field -> another environment variable that it is read from."""

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)

    @classmethod
    def env_name(cls, field: str) -> str:
        """The environment variable of a field."""
        return f"{cls.env_prefix()}{field}".upper()

    @classmethod
    def env_prefix(cls) -> str:
        """What every environment variable of this class begins with."""
        return f"{ENV_PREFIX}{cls.section}_".upper() if cls.section else ENV_PREFIX

    @classmethod
    def key(cls, field: str) -> str:
        """The field's name in the settings file and on the command line: `http`, `registry.database_url`."""
        return f"{cls.section}.{field}" if cls.section else field


class ServiceSettings(SettingsModel):
    """Base of the settings of one service. A subclass names its `section`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.section not in SECTIONS:
            raise TypeError(f"{cls.__name__}.section must be one of {', '.join(SECTIONS)}")


class Settings(SettingsModel):
    """What every process of Lares needs to know."""

    home: Path = Field(
        default_factory=lambda: Path.home() / ".lares",
        description="Folder of everything that Lares keeps: settings file, databases, blob store.",
    )
    settings_file: Path | None = Field(
        default=None,
        description="TOML file that settings are read from; settings.toml in the home folder if unset.",
    )
    http: Address = Field(
        default=Address("127.0.0.1", 7210),
        description="HOST:PORT of the gateway, which speaks OpenAI's HTTP.",
    )
    grpc: Address = Field(
        default=Address("127.0.0.1", 7211), description="HOST:PORT of the gRPC services of this process."
    )
    allow_remote: bool = Field(
        default=False,
        description="Allow addresses that other machines can reach. Without it only loopback is served.",
    )
    metrics: Address | None = Field(
        default=None,
        description="HOST:PORT of Prometheus metrics for a process that runs no gateway; off if unset.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="How much is logged: debug, info, warning or error."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="How it is logged, to stderr: console for people, json for machines."
    )
    drain_timeout_s: float = Field(
        default=20.0,
        ge=0,
        le=3600,
        description="Seconds that running calls get to end in when the process is stopped.",
    )
    max_message_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=64 * 1024,
        le=1024**3,
        description="The largest gRPC message sent or taken.",
    )
    store: Path | None = Field(
        default=None, description="Folder of the blob store; store in the home folder if unset."
    )
    registry_endpoint: str | None = Field(
        default=None, description="Where the registry answers, HOST:PORT; the grpc address if unset."
    )
    downloader_endpoint: str | None = Field(
        default=None, description="Where the downloader answers, HOST:PORT; the grpc address if unset."
    )
    inference_endpoint: str | None = Field(
        default=None, description="Where inference answers, HOST:PORT; the grpc address if unset."
    )
    speech_endpoint: str | None = Field(
        default=None, description="Where speech answers, HOST:PORT; the grpc address if unset."
    )
    trainer_endpoint: str | None = Field(
        default=None, description="Where the trainer answers, HOST:PORT; the grpc address if unset."
    )

    @model_validator(mode="after")
    def _stay_at_home(self) -> Self:
        for name in ("http", "grpc", "metrics"):
            address: Address | None = getattr(self, name)
            if address is not None and not address.is_loopback and not self.allow_remote:
                raise ValueError(
                    f"{name} = {address} can be reached from other machines, which is refused until"
                    f" it is meant: set allow_remote (LARES_ALLOW_REMOTE=true), or listen on 127.0.0.1"
                )
        return self

    @property
    def store_path(self) -> Path:
        """Where the blob store is."""
        return self.store or self.home / "store"

    def endpoint(self, service: str) -> str:
        """Where a service answers. service: one of SERVICES."""
        if service not in SERVICES:
            raise ValueError(f"{service!r} is none of {', '.join(SERVICES)}")
        override: str | None = getattr(self, f"{service}_endpoint")
        return override or str(self.grpc.reachable)


S = TypeVar("S", bound=SettingsModel)


def load_settings(
    cls: type[S], overrides: Mapping[str, object] | None = None, *, environ: Mapping[str, str] | None = None
) -> S:
    """Read a class of settings. Raises InvalidArgument, which names the setting and where its value stands.

    overrides: what the command line gave, by dotted key (`http`, `registry.database_url`). Each class takes
    its own, so that one mapping serves a whole process. environ: os.environ unless a test says otherwise.
    """
    overrides = dict(overrides or {})
    environ = os.environ if environ is None else environ
    file = _settings_file(overrides, environ)
    layers: list[tuple[Source, dict[str, Any]]] = [
        ("file", _from_file(cls, file)),
        ("alias", _from_environment(cls.aliases, environ)),
        ("environment", _from_environment({name: cls.env_name(name) for name in cls.model_fields}, environ)),
        ("command line", _from_overrides(cls, overrides)),
    ]
    values: dict[str, Any] = {}
    sources: dict[str, Source] = {}
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    try:
        settings = cls(**values)
    except ValidationError as error:
        raise _explain(cls, error, sources, file) from None
    settings._sources.update(sources)
    return settings


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One line of `lares settings`. alias: another variable that it is read from, or empty."""

    name: str
    env: str
    alias: str
    key: str
    default: str
    value: str
    source: Source
    description: str


def describe(cls: type[SettingsModel], settings: SettingsModel | None = None) -> Iterator[SettingRow]:
    """One row a field: of the defaults, or of loaded settings. Secrets are masked."""
    settings = settings if settings is not None else cls()
    for name, field in cls.model_fields.items():
        yield SettingRow(
            name=name,
            env=cls.env_name(name),
            alias=cls.aliases.get(name, ""),
            key=cls.key(name),
            default=_shown(_default(field)),
            value=_shown(getattr(settings, name)),
            source=settings._sources.get(name, "default"),
            description=field.description or "",
        )


def _default(field: FieldInfo) -> object:
    return None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _shown(value: object) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return "********" if value.get_secret_value() else ""
        case bool():
            return "true" if value else "false"
        case list() | tuple() | set() | frozenset():
            return ", ".join(_shown(item) for item in value)
        case _:
            return str(value)


def _settings_file(overrides: Mapping[str, object], environ: Mapping[str, str]) -> Path:
    """The file to read; one that was asked for by name must be there."""
    named = overrides.get("settings_file") or environ.get("LARES_SETTINGS_FILE")
    if named:
        path = Path(str(named)).expanduser()
        if not path.is_file():
            raise InvalidArgument.at("settings_file", f"there is no file {path}")
        return path
    home = overrides.get("home") or environ.get("LARES_HOME") or Path.home() / ".lares"
    return Path(str(home)).expanduser() / "settings.toml"


def _from_file(cls: type[SettingsModel], file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument.at("settings_file", f"{file} cannot be read: {error}") from error
    table = (
        found.get(cls.section, {}) if cls.section else {k: v for k, v in found.items() if k not in SECTIONS}
    )
    if not isinstance(table, dict):
        raise InvalidArgument.at(cls.section, f"must be a table, [{cls.section}], in {file}")
    return table


def _from_environment(variables: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Any]:
    """variables: by field. Empty counts as unset: that is what a compose file makes of a variable that nobody gave."""
    found = {name: environ.get(variable, "") for name, variable in variables.items()}
    return {name: value for name, value in found.items() if value}


def _from_overrides(cls: type[SettingsModel], overrides: Mapping[str, object]) -> dict[str, Any]:
    taken = {}
    for key, value in overrides.items():
        section, dot, name = key.partition(".")
        if not dot:
            section, name = "", key
        if section == cls.section:
            taken[name] = value
        elif section and section not in SECTIONS:
            raise InvalidArgument.at(
                key, f"there is no such setting: its section must be one of {', '.join(SECTIONS)}"
            )
    return taken


def _explain(
    cls: type[SettingsModel], error: ValidationError, sources: Mapping[str, Source], file: Path
) -> InvalidArgument:
    violations = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        location = [str(part) for part in problem["loc"]]
        name = location[0] if location else ""
        place = {
            "file": f"in {file}",
            "alias": f"in {cls.aliases.get(name, '')}",
            "environment": f"in {cls.env_name(name)}",
            "command line": "on the command line",
        }
        where = place.get(sources.get(name, "default"), "")
        why = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            why = f"there is no such setting; `lares settings` lists {cls.section or 'the shared'} settings"
        violations.append(FieldViolation(cls.key(".".join(location)), f"{why} ({where})" if where else why))
    message = "; ".join(f"{v.field}: {v.description}" if v.field else v.description for v in violations)
    return InvalidArgument(f"settings are wrong: {message}", violations=violations)
