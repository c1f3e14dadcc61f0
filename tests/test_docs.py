"""What can be set, called or asked is documented, and nothing that cannot: the code is the list.

After Datasette's tests/test_docs.py: https://github.com/simonw/datasette/blob/main/tests/test_docs.py
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from starlette.routing import BaseRoute, Route

from notebooks_service.cli import _parser
from notebooks_service.domain import LaunchOutcome, LaunchStep
from notebooks_service.forge import app as forge_app
from notebooks_service.platform.signin import TOKEN_SCOPES
from notebooks_service.settings import Settings
from notebooks_service.spawner import roles
from notebooks_service.web.app import make_app
from notebooks_service.web.parts import HubFacts, make_parts

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def sections(name: str, level: int = 3) -> dict[str, str]:
    """The text below each heading of one level, by the heading without its backticks."""
    found: dict[str, str] = {}
    title = None
    for line in (DOCS / name).read_text(encoding="utf-8").splitlines():
        heading = re.match(r"(#+) (.*)", line)
        if heading and len(heading[1]) <= level:
            title = heading[2].replace("`", "") if len(heading[1]) == level else None
            if title is not None:
                assert title not in found, f"{name} documents {title} twice"
                found[title] = ""
        elif title is not None:
            found[title] += line + "\n"
    return found


# -- settings ------------------------------------------------------------------------------------


def shown_default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "" or value == ():
        return "default: none"
    if isinstance(value, bool):
        return f"default: `{str(value).lower()}`"
    if isinstance(value, tuple):
        return "default: " + ", ".join(f"`{part}`" for part in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"default: `{value}`"


def test_every_setting_is_documented_and_no_other() -> None:
    assert list(sections("settings.md")) and set(sections("settings.md")) == set(
        Settings.model_fields
    )


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_says_variable_default_and_meaning(name: str) -> None:
    text = sections("settings.md")[name]
    field = Settings.model_fields[name]
    assert f"`NOTEBOOKS_{name.upper()}`" in text
    assert shown_default(field) in text
    assert field.description and " ".join(field.description.split()) in " ".join(text.split())


# -- commands ------------------------------------------------------------------------------------


def commands(
    parser: argparse.ArgumentParser, name: str = "notebooks"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, with its whole name."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, child in action.choices.items():
            yield from commands(child, f"{name} {word}")


COMMANDS = dict(commands(_parser()))


def test_every_command_is_documented_and_no_other() -> None:
    assert set(sections("commands.md")) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_its_options_and_arguments(name: str) -> None:
    text = sections("commands.md")[name]
    wanted = {"--data DIR", "--debug"}
    for action in COMMANDS[name]._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if action.option_strings:
            metavar = f" {action.metavar}" if isinstance(action.metavar, str) else ""
            wanted.add(action.option_strings[-1] + metavar)
        else:
            wanted.add(str(action.metavar or action.dest))
    common = sections("commands.md", 2)["Options of every command"]
    missing = [each for each in wanted if f"`{each}`" not in text and f"`{each}`" not in common]
    assert not missing, f"docs/commands.md, {name}: {missing}"


# -- the service's API ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = Settings(data=tmp_path_factory.mktemp("data"))
    facts = HubFacts(api_url="http://127.0.0.1:9/hub/api", api_token="unused")
    app: Any = make_app(make_parts(settings, facts))
    description: dict[str, Any] = app._app.openapi()
    return description


def test_every_endpoint_is_documented_and_no_other(schema: dict[str, Any]) -> None:
    offered = {
        f"{method.upper()} {path}"
        for path, operations in schema["paths"].items()
        for method in operations
    }
    assert offered
    assert set(sections("api.md")) == offered


def test_every_parameter_is_documented(schema: dict[str, Any]) -> None:
    documented = sections("api.md")
    missing = [
        f"{method.upper()} {path}: {parameter['name']}"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
        and f"`{parameter['name']}`" not in documented[f"{method.upper()} {path}"]
    ]
    assert not missing


def test_the_words_of_a_launch_are_documented() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    words = [*(step.value for step in LaunchStep), *(end.value for end in LaunchOutcome)]
    assert not [word for word in words if f"`{word}`" not in text]


# -- the embedded forge --------------------------------------------------------------------------


FORGE_PLACES = ("/api/v4/", "/oauth/", "/.well-known/", "/jwt/")


def forge_endpoints() -> set[str]:
    """What the forge answers to programs, as ``METHOD /path``."""

    def routes() -> Iterator[BaseRoute]:
        for name in forge_app.ROUTERS:
            module = __import__(f"{forge_app.__package__}.{name}", fromlist=["router"])
            yield from module.router.routes

    return {
        f"{method} {re.sub(r':[a-z_]+}', '}', route.path).rstrip('/')}"
        for route in routes()
        if isinstance(route, Route) and route.path.startswith(FORGE_PLACES)
        for method in route.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }


def test_every_endpoint_of_the_forge_is_documented_and_no_other() -> None:
    text = (DOCS / "forge.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", text, flags=re.MULTILINE))
    assert documented == forge_endpoints()


# -- the rest ------------------------------------------------------------------------------------


def test_every_decision_is_in_the_index() -> None:
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    decisions = {path.name for path in (DOCS / "decisions").glob("[0-9]*.md")}
    assert decisions
    assert set(re.findall(r"\]\(([^)]+\.md)\)", index)) == decisions


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_into_the_repository_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert not [link for link in links if not (ROOT / link).exists()]


def test_every_scope_has_its_reason() -> None:
    text = (DOCS / "security.md").read_text(encoding="utf-8")
    scopes = {
        *roles.USER_SCOPES,
        *roles.SERVICE_SCOPES,
        *roles.CLIENT_SCOPES,
        *roles.STOCK_SERVER_SCOPES,
        roles.SERVER_SCOPE,
        *TOKEN_SCOPES,
    }
    assert not [scope for scope in scopes if f"`{scope}`" not in text]


def test_the_table_of_threats_names_tests_that_exist() -> None:
    text = (DOCS / "security.md").read_text(encoding="utf-8")
    table = re.search(r"^## Threats\n(.*?)^## ", text, re.S | re.M)
    assert table
    named = set(re.findall(r"`(test_\w+)`", table[1]))
    written = {
        name
        for file in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_\w+)\(", file.read_text(encoding="utf-8"))
    }
    assert named and not named - written
    rows = [line for line in table[1].splitlines() if line.startswith("| ")][1:]
    assert [row for row in rows if "`test_" not in row.split("|")[-2]] == []
