"""Pages made from the code: the recipe from its pydantic models, the commands from their parser, the API from docstrings.

    python -m docs.reference

writes recipe.md and commands.md, and brings numbers that a comment follows, `12.5<!-- file:path.to.value -->`, to
those of benchmarks/results/<file>.json. A test holds the pages against the code.
api.md is made when the documents are built.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).parents[1]
API = {
    "The method, plain torch": [
        "trainers.m2can.network", "trainers.m2can.encoders.text", "trainers.m2can.encoders.picture",
        "trainers.m2can.encoders.freezing", "trainers.m2can.objective", "trainers.m2can.losses.task",
        "trainers.m2can.losses.cross_modal", "trainers.m2can.losses.cross_domain", "trainers.m2can.losses.adversarial",
        "trainers.m2can.losses.class_confusion", "trainers.m2can.pseudo_labels", "trainers.m2can.sam",
        "trainers.m2can.collective",
    ],
    "From Python": ["m2can.training", "m2can.prediction", "m2can.models", "trainers.training_run"],
    "Training": [
        "trainers.recipe.loading", "trainers.cluster.driver", "trainers.step.step", "trainers.loop.loop",
        "trainers.model.card", "trainers.model.checkpoint", "trainers.model.predictor",
    ],
    "Selection without target labels": [
        "trainers.validators.confidence", "trainers.validators.structure", "trainers.validators.choice",
    ],
    "Data": [
        "datasets_manifest.manifest.loading", "datasets_manifest.records.readers", "datasets_manifest.stream.plan",
        "datasets_manifest.checks.data_check",
    ],
    "Services": ["services.registry", "services.promotion", "services.jobs.jobs", "services.serving.deployment"],
}  # fmt: skip


def recipe_page() -> str:
    """Every key of a recipe: type, meaning, what it is if it is left out, with either preset."""
    from trainers.recipe import Recipe, make_recipe

    data = {"sources": ["a", "b"], "target": "c"}
    presets = [make_recipe({"preset": name, "data": data}).flat() for name in ("recommended", "published")]
    parts = [
        "# Recipe reference",
        "Made from the models in `trainers/recipe`. A recipe file states only what differs from its preset; "
        "`--set a.b=c` overrides one key. Unknown keys are refused with the nearest valid one. The default is that of the "
        "preset `recommended`, which is taken where a recipe names none.",
    ]
    parts += _section(Recipe, "", *presets)
    return "\n\n".join(parts) + "\n"


def _section(model: type[BaseModel], path: str, recommended: dict[str, Any], published: dict[str, Any]) -> list[str]:
    rows: list[str] = []
    below: list[str] = []
    for name, field in model.model_fields.items():
        key, inner = f"{path}{name}", _model_in(field.annotation)
        if inner is not None:
            below += _section(inner, f"{key}.", recommended, published)
        if inner is field.annotation:
            continue
        value = recommended.get(key, field.default)  # keys of a section that is left out are in no preset
        default = "**wanted**" if field.default is PydanticUndefined else f"`{_yaml(value)}`"
        meaning = field.description or ""
        if key in published and published[key] != value and key != "preset":
            meaning += f" (`published`: `{_yaml(published[key])}`)"
        rows.append(f"| `{key}` | {_type(field)} | {default} | {meaning} |")
    title = f"## `{path[:-1]}`" if path else "## At the top"
    text = "" if not path else inspect.getdoc(model) or ""
    table = "| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows)
    return [part for part in (title, text, table if rows else "") if part] + below


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """A section, also one that may be left out."""
    members = [kind for kind in typing.get_args(annotation) if kind is not type(None)] or [annotation]
    return members[0] if inspect.isclass(members[0]) and issubclass(members[0], BaseModel) else None


def _type(field: Any) -> str:
    limits = [str(limit) for limit in field.metadata if not str(limit).startswith(("FieldInfo", "allow_inf_nan"))]
    limits = [re.sub(r"^(\w+)\(\w+=(.*)\)$", r"\1 \2", limit) for limit in limits]
    words = {"Ge": "≥", "Gt": ">", "Le": "≤", "Lt": "<", "MinLen": "length ≥"}
    shown = [re.sub(r"^\w+", lambda m: words.get(m.group(), m.group()), limit) for limit in limits if "(" not in limit]
    return " ".join([_name(field.annotation), *shown]).replace("|", r"\|")


def _name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _name(arguments[0])
    if origin is typing.Literal:
        return " ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if argument is type(None) else _name(argument) for argument in arguments)
    if origin in (list, tuple):
        many = "list of" if origin is list else {2: "pair of"}.get(len(arguments), f"{len(arguments)} times")
        return f"{many} {_name(arguments[0])}"
    if _model_in(annotation) is not None:
        return "keys below"
    return {"int": "whole number", "float": "number", "str": "text", "bool": "true or false"}.get(
        getattr(annotation, "__name__", ""), str(getattr(annotation, "__name__", annotation))
    )


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(list(value) if isinstance(value, tuple) else value)


def commands_page() -> str:
    """Every command with its arguments and options."""
    from deploy.commands import ROOT

    parts = [
        "# Commands",
        "Made from the command line's own parser. Exit codes: 0 done, 2 bad input, 1 failed, 143 stopped by SIGTERM "
        "with a checkpoint.",
    ]

    def walk(command: Any, path: str) -> None:
        if hasattr(command, "commands"):
            for name in sorted(command.commands):
                walk(command.commands[name], f"{path} {name}")
            return
        rows = []
        for parameter in command.params:
            options = ", ".join(f"`{name}`" for name in parameter.opts if name.startswith("-"))
            shown = options or f"`{(parameter.metavar or parameter.name).upper()}`"
            default = parameter.default
            about = (getattr(parameter, "help", "") or "").replace("|", r"\|")
            with_default = (
                f"`{default}`" if isinstance(default, (str, int, float, Path)) and default is not False else ""
            )
            rows.append(f"| {shown} | {'**wanted**' if parameter.required else with_default} | {about} |")
        example = (command.epilog or "").replace("Example:", "").strip()
        parts.append(f"## `{path}`")
        parts.append((command.help or "").strip())
        parts.append("| | default | |\n|---|---|---|\n" + "\n".join(rows) if rows else "")
        if example:
            parts.append(f"Example: `{example}`")

    walk(ROOT, "m2can")
    return "\n\n".join(part for part in parts if part) + "\n"


def notebook_page() -> str:
    """notebook.ipynb as a page: its texts, and its code in blocks."""
    cells = json.loads((Path(__file__).parent / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    code = [cell["cell_type"] == "code" for cell in cells]
    title, *rest = [f"```python\n{t}\n```" if is_code else t for t, is_code in zip(texts, code, strict=True)]
    return "\n\n".join([title, "[As a notebook](notebook.ipynb)", *rest]) + "\n"


def api_page() -> str:
    """Public functions and classes of the modules people build on, with their docstrings."""
    parts = [
        "# API",
        "Made from the docstrings. Tensors carry a suffix that names their axes; each module's legend says which.",
    ]
    for title, modules in API.items():
        parts.append(f"## {title}")
        for name in modules:
            module = import_module(name)
            parts += [f"### `{name}`", _text(module.__doc__)]
            for key, thing in vars(module).items():
                own = getattr(thing, "__module__", None) == name and not key.startswith("_")
                if own and (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__doc__:
                    parts.append(_entry(key, thing))
    return "\n\n".join(parts) + "\n"


def _entry(name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        head = f"class {name}"
    else:
        signature = re.sub(r"<function .*? at 0x\w+>", "…", str(inspect.signature(thing)).replace("'", ""))
        head = f"{name}{signature}"
    return f"```python\n{head}\n```\n\n{_text(inspect.getdoc(thing))}"


def _text(document: str | None) -> str:
    """A docstring as Markdown: what is indented is kept as it is written, the rest flows."""
    lines, out, code = inspect.cleandoc(document or "").splitlines(), [], False
    for line in lines:
        indented = line.startswith("    ")
        if indented != code and (line.strip() or code):
            out.append("```text" if indented else "```")
            out.append("") if not indented else None
            code = indented
        out.append(line[4:] if indented else line.replace("<", "&lt;").replace("_", r"\_"))
    return "\n".join([*out, *(["```"] if code else [])])


def manifest_rows(model: type[BaseModel]) -> list[str]:
    """The rows of docs/manifest.md: a manifest's keys with default and meaning, as the models have them."""
    rows = []
    for name, field in model.model_fields.items():
        if field.default is PydanticUndefined:
            default = "**wanted**"
        elif isinstance(field.default, BaseModel) or field.default in (None, {}):
            default = "–"
        else:
            default = f"`{_yaml(field.default)}`"
        rows.append(f"| `{name}` | {default} | {(field.description or '').replace('|', chr(92) + '|')} |")
    return rows


_MEASURED = re.compile(r"[\w.,]+<!-- (\w+):([\w.]+) -->")


def with_measured_numbers(page: str) -> str:
    """The page with today's numbers. Raises KeyError: nobody measured one of them."""

    def measured(found: re.Match[str]) -> str:
        value: Any = json.loads((ROOT / "benchmarks" / "results" / f"{found[1]}.json").read_text())
        for key in found[2].split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        if isinstance(value, float):
            value = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        return f"{value}<!-- {found[1]}:{found[2]} -->"

    return _MEASURED.sub(measured, page)


MADE = {"recipe.md": recipe_page, "commands.md": commands_page}


def pages() -> dict[Path, str]:
    """Every page below docs/ as it should be."""
    written = {file: with_measured_numbers(file.read_text(encoding="utf-8")) for file in (ROOT / "docs").glob("*.md")}
    return written | {ROOT / "docs" / name: make() for name, make in MADE.items()}


if __name__ == "__main__":
    for file, content in pages().items():
        file.write_text(content, encoding="utf-8")
