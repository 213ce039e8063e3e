"""`m2can tune`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli.options import DataRoot, use_data_root
from services.cli.output import print_json


def tune(
    sweep: Annotated[Path, typer.Argument(help="Sweep file (YAML), or `ablation`, `baselines`.")],
    recipe: Annotated[Path | None, typer.Option(help="Recipe, in place of the sweep's own.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a recipe key in all trials.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep, in place of its own.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster (cluster.address); default: a local one.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, say what would run.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="The result as one JSON object.")] = False,
    data_root: DataRoot = None,
) -> None:
    """Search or compare recipes: each trial one training run, chosen without target labels.

    A sweep that was cut off goes on when the command is given again: trials that had ended are not repeated.
    """
    from tuning.sweep import load_sweep

    use_data_root(data_root)
    overrides = list(set_ or [])
    if address is not None:
        overrides.append(f"cluster.address={address}")
    plan = load_sweep(sweep, recipe, overrides, name)
    if dry_run:
        _show_plan(plan)
        return
    from services.cli.stopping import end_on_signals
    from tuning.driver import run_sweep

    with end_on_signals("the same command goes on: trials that ended are not repeated"):
        result = run_sweep(plan)
    if json_:
        print_json(result.to_dict())
        return
    typer.echo(result.table())
    if result.shared is not None:
        typer.echo(f"\nshared      {result.shared}")
    if result.best is not None:
        typer.echo(f"\nbest        {result.best.name}, by {plan.sweep.objective} without target labels")
        if result.floor is not None and result.floor.chosen:
            typer.echo("            no trial is better than the floor: the model is the floor")
        typer.echo(f"recipe      {result.best_recipe}  (m2can train {result.best_recipe})")
        if result.shared is not None and (result.folder / "best").is_dir():
            keys = [f"encoders.{tower}.freeze=none" for tower in ("text", "picture")]
            keys += ["encoders.features=null"] if plan.recipe([]).encoders.features is not None else []
            thawed = " ".join(f"--set {key}" for key in keys)
            typer.echo(f"            m2can train {result.best_recipe} --start-from {result.folder / 'best'} {thawed}")
            typer.echo("            goes on from the heads that were found, and trains the encoders, too")
    if result.registered is not None:
        typer.echo(f"model       models:/{result.registered.model_name}/{result.registered.model_version}")
        if result.registered.not_candidate:
            typer.echo(f"            not the candidate: {result.registered.not_candidate}")
    if result.tracking_uri is not None:
        typer.echo(f"MLflow run  {result.parent_run} at {result.tracking_uri}")
    typer.echo(f"pictures    {result.report}")
    typer.echo(f"report      {result.report_page}")


def _show_plan(plan: Any) -> None:
    from trainers.preflight.preparation import prepare
    from tuning.search import planned_trials
    from tuning.shared_features import of_recipe, why_not

    prepared = prepare(plan.recipe([]))
    sweep = plan.sweep
    typer.echo(f"sweep {sweep.name}: {planned_trials(plan)} trials of {prepared.recipe.train.epochs} epochs")
    typer.echo(f"  {' + '.join(prepared.card.sources)} → {prepared.card.target}, scored by {sweep.objective}")
    reason, own = why_not(plan, plan.recipe([])), of_recipe(plan, plan.recipe([]))
    computed = "computed once, shared by all trials" if reason is None else f"not shared: {reason}"
    typer.echo(f"  features: {own or computed}")
    for key, part in sweep.space.items():
        typer.echo(f"  {key}: {part.described()}")
    for variant, overrides in sweep.variants.items():
        typer.echo(f"  {variant}: {', '.join(overrides) or 'the recipe as it is'}  × seeds {sweep.seeds}")
