"""The `segnode` command: one function per subcommand, errors as one sentence."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from segnode_cli.demo import run_demo, run_node
from segnode_cli.doctor import examine
from segnode_cli.explain import print_explanation
from segnode_cli.explain import replay as replay_studies
from segnode_cli.jobs import (
    cancel_jobs,
    print_deliveries,
    print_jobs,
    retry_jobs,
    show_job,
    withdraw_jobs,
)
from segnode_cli.models.add import add_model
from segnode_cli.models.show import print_models, remove_model, show_model
from segnode_cli.node import CONFIG
from segnode_cli.routes import check_routes
from segnode_cli.segment import segment_folder
from segnode_cli.send import parse_peer, send_paths
from segnode_cli.show import say
from segnode_cli.verify import agree
from segnode_contract.errors import SegnodeError
from segnode_contract.settings import load_settings

DATA = Path("data/node")
DEMO_DATA = Path("data/demo")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="A PACS node that segments studies as they arrive. Not a medical device.",
)
routes = typer.Typer(no_args_is_help=True, help="Which series goes to which model.")
app.add_typer(routes, name="routes")
models = typer.Typer(no_args_is_help=True, help="The models that this installation has.")
app.add_typer(models, name="models")

DataOption = Annotated[Path, typer.Option(envvar="SEGNODE_DATA", help="Data folder of the node.")]
# no SEGNODE_DATA: the demo sends a phantom, which is for no real node
DemoDataOption = Annotated[Path, typer.Option(help="Data folder of the demo's node.")]
ConfigOption = Annotated[Path, typer.Option(envvar="SEGNODE_CONFIG", help="Settings file.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
) -> None:
    """Take what stands before the subcommand."""
    _Debug.on = debug


@app.command()
def demo(
    study: Annotated[Path | None, typer.Option(help="Folder with DICOM to send instead.")] = None,
    leave: Annotated[bool, typer.Option("--exit", help="End after the result.")] = False,
    data: DemoDataOption = DEMO_DATA,
    http_port: PortOption = 0,
    dicom_port: PortOption = 0,
) -> None:
    """Start a node, send a study, await the overlay, print where to see it."""
    config = CONFIG / "demo.toml"
    run_demo(data, config, study=study, leave=leave, http_port=http_port, dicom_port=dicom_port)


@app.command()
def up(
    data: DataOption = DATA,
    config: ConfigOption = CONFIG / "segnode.toml",
    http_port: PortOption = 0,
    dicom_port: PortOption = 0,
    workers: Annotated[int, typer.Option(min=1, help="Worker children.")] = 2,
) -> None:
    """Keep a node up on this machine until Ctrl-C."""
    run_node(data, config, http_port=http_port, dicom_port=dicom_port, workers=workers)


@app.command()
def send(
    paths: list[Path],
    to: Annotated[str, typer.Option(help="AET@HOST:PORT; by default the node of --data.")] = "",
    data: DataOption = DATA,
) -> None:
    """Send DICOM files by C-STORE."""
    sent = send_paths(paths, parse_peer(to, data))
    say(f"{sent.stored} instances sent")
    if sent.refused:
        raise typer.Exit(1)


@app.command()
def segment(
    path: Path,
    model: Annotated[str, typer.Option(help="Name of the model.")],
    out: Annotated[Path, typer.Option(help="Folder for the SEG.")],
    config: ConfigOption = CONFIG / "segnode.toml",
    data: DataOption = DATA,
) -> None:
    """Run the worker's own pipeline on the files of one series, without a server."""
    print(segment_folder(path, model, out, load_settings(config), data))


@app.command()
def jobs(data: DataOption = DATA, as_json: JsonOption = False) -> None:
    """List the newest jobs."""
    print_jobs(data, as_json)


@app.command()
def job(key: str, data: DataOption = DATA, as_json: JsonOption = False) -> None:
    """Show one job; the first 8 or more digits of its key are enough."""
    show_job(data, key, as_json)


@app.command()
def retry(keys: list[str], data: DataOption = DATA) -> None:
    """Queue failed jobs again, make withdrawn ones anew, send again what was refused."""
    retry_jobs(data, keys)


@app.command()
def deliveries(data: DataOption = DATA, as_json: JsonOption = False) -> None:
    """List results that other archives have not got yet, and why."""
    print_deliveries(data, as_json)


@app.command()
def cancel(keys: list[str], data: DataOption = DATA) -> None:
    """Cancel jobs that wait or run; a running model stops within two seconds."""
    cancel_jobs(data, keys)


@app.command()
def withdraw(
    keys: list[str],
    reason: Annotated[str, typer.Option(help="What is wrong, without a patient's name.")],
    data: DataOption = DATA,
) -> None:
    """Withdraw wrong results: the viewer opens them no more; the archive keeps the objects."""
    withdraw_jobs(data, keys, reason)


@routes.command("check")
def routes_check(
    config: ConfigOption = CONFIG / "segnode.toml",
    data: DataOption = DATA,
) -> None:
    """Say what is wrong in a settings file, with line and column; exit code 1 if anything is."""
    complaints = check_routes(config, data)
    for complaint in complaints:
        print(f"{config}:{complaint.line}:{complaint.column}: {complaint.sentence}")
    if complaints:
        raise typer.Exit(1)
    say(f"{config}: nothing is wrong")


@app.command()
def explain(study_uid: str, data: DataOption = DATA, as_json: JsonOption = False) -> None:
    """Show what each route says of each series of a study in the archive, and why."""
    print_explanation(data, study_uid, as_json)


@app.command()
def replay(
    since: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M"], help="Local time.")
    ],
    run: Annotated[bool, typer.Option("--run", help="Start what is missing.")] = False,
    data: DataOption = DATA,
    as_json: JsonOption = False,
) -> None:
    """Show which jobs the routes want of studies that changed since a day; nothing is started."""
    replay_studies(data, since.astimezone(), run=run, as_json=as_json)


@models.command("list")
def list_models(data: DataOption = DATA, as_json: JsonOption = False) -> None:
    """List the models that are built in or were added, and why some are refused."""
    print_models(data, as_json)


@models.command("show")
def show_one_model(name: str, data: DataOption = DATA, as_json: JsonOption = False) -> None:
    """Show a model's card, its digest and its files."""
    show_model(data, name, as_json)


@models.command("add")
def add_one_model(
    path: Annotated[Path, typer.Argument(help="Folder, .zip, .tar or .tar.gz.")],
    card: Annotated[Path | None, typer.Option(help="Card to use instead of its own.")] = None,
    yes: YesOption = False,
    no_trial: Annotated[bool, typer.Option("--no-trial", help="Do not run it once first.")] = False,
    data: DataOption = DATA,
) -> None:
    """Show what a model from elsewhere holds and may execute, and add it; a card is drafted."""
    if not add_model(path, data, card_file=card, yes=yes, trial=not no_trial):
        raise typer.Exit(1)


@models.command("remove")
def remove_one_model(name: str, yes: YesOption = False, data: DataOption = DATA) -> None:
    """Remove a model that was added."""
    if not remove_model(data, name, yes=yes):
        raise typer.Exit(1)


@app.command()
def dashboard(data: DataOption = DATA, port: PortOption = 0) -> None:
    """Show the ledger in a browser while Orthanc is down, on this machine only."""
    from segnode_cli.dashboard import serve_dashboard  # noqa: PLC0415 # Flask: an extra

    serve_dashboard(data, port)


@app.command()
def verify(data: DataOption = DATA, as_json: JsonOption = False) -> None:
    """Compare ledger and archive; exit code 1 with a list where they differ."""
    if not agree(data, as_json):
        raise typer.Exit(1)


@app.command()
def doctor(
    data: DataOption = DATA,
    alert: Annotated[bool, typer.Option("--alert", help="Tell people of a trial, too.")] = False,
) -> None:
    """Check every part; each failure is shown with its cure."""
    if not examine(data, alert=alert):
        raise typer.Exit(1)


class _Debug:
    on = False


def main() -> None:
    """Run the command; a failure is one sentence on stderr and exit code 1."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    # our own sentence says it better
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    try:
        app()
    except SegnodeError as error:
        if _Debug.on:
            raise
        print(f"segnode: {error.sentence}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the command's end: one sentence, whatever it was
        if _Debug.on:
            raise
        print(f"segnode: {_said_of(error)}", file=sys.stderr)
        sys.exit(1)


def _said_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}."
    # not its text, which may quote what an image says of a patient
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"This failed with {type(error).__name__} at {Path(place.filename).name}:{place.lineno}, "
        "which segnode does not know; `segnode --debug` before the same command shows more."
    )


def _as_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
