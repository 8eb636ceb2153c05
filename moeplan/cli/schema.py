"""``moeplan schema``: the scenario language, for editors and for readers."""

from __future__ import annotations

import click


@click.command()
@click.option("--markdown", is_flag=True, help="The reference page instead of the JSON Schema.")
@click.option("--plan", is_flag=True, help="The JSON Schema of plans (`moeplan simulate --json`) instead.")
@click.option("--json", "as_json", is_flag=True, help="JSON Schema (the default).")
def schema(markdown: bool, plan: bool, as_json: bool) -> int:
    """Print the JSON Schema of scenario files."""
    import json

    from moeplan.files.scenario.schema_document import json_schema, reference_page

    if markdown and (as_json or plan):
        raise click.UsageError("--markdown excludes --json and --plan")
    if plan:
        from moeplan.files.plan_json import plan_schema

        click.echo(json.dumps(plan_schema(), indent=2, ensure_ascii=False))
    elif markdown:
        click.echo(reference_page(), nl=False)
    else:
        click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0
