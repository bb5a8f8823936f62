"""What a compression will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara_dist.cli.base import FormatOption, IdField, MetadataFields, TextField, TitleField, app, resolve

if TYPE_CHECKING:
    from clara_dist.planning import Plan, Workload


@app.command()
def plan(
    model: Annotated[Path | None, typer.Option(help="Model directory; its base LLM must be a local one.")] = None,
    base_config: Annotated[Path | None, typer.Option(help="The base LLM's config.json, or its directory.")] = None,
    parameters: Annotated[
        float | None, typer.Option(help="Or just its parameters, as 7e9, with --hidden-size.")
    ] = None,
    hidden_size: Annotated[int | None, typer.Option(help="D of a model that is given by its parameters.")] = None,
    memory_tokens: Annotated[int | None, typer.Option(help="M; the model's, else 16.")] = None,
    passages: Annotated[int | None, typer.Option(help="How many; the corpus's, if there is one.")] = None,
    tokens: Annotated[str, typer.Option(help="Tokens of a text: 256, or shares: 64:0.2,128:0.5,256:0.3.")] = "256",
    corpus: Annotated[list[str] | None, typer.Option(help="Count and sample these files instead.")] = None,
    sample: Annotated[int, typer.Option(help="Documents of the corpus to look at.", min=1)] = 2000,
    format: FormatOption = None,
    id_field: IdField = None,
    text_field: TextField = None,
    title_field: TitleField = None,
    metadata_fields: MetadataFields = None,
    gpu: Annotated[str | None, typer.Option(help="A100, H100, H200 or L40S.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Result of `clara-dist bench compress`.")] = None,
    utilization: Annotated[float | None, typer.Option(help="Share of the GPU's peak; 0.6 if not measured.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Each with a GPU of its own.")] = 1,
    cost_per_hour: Annotated[float | None, typer.Option(help="Dollars for a worker; else the GPU's usual.")] = None,
    storage_cost: Annotated[float, typer.Option(help="Dollars for a GB a month.")] = 0.023,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say what a compression will take: GPU-hours, wall time, store and index size, network, cost.

    \b
    Examples:
      clara-dist plan --parameters 7e9 --hidden-size 4096 --passages 21000000 --gpu H200 --workers 8
      clara-dist plan --model models/instruct --corpus corpus.jsonl --calibration bench.json --workers 2
    """
    from clara_dist.errors import ConfigError
    from clara_dist.planning import Calibration, Lengths, ModelShape, Workload, estimate, find_gpu

    m, doc_max_tokens, tokenizer = memory_tokens or 16, 256, None
    if model is not None:
        from clara_dist.config.model import ClaraConfig

        # What else the file holds (versions) decides no size; `read_config` would load torch.
        written = json.loads((model / "config.json").read_text(encoding="utf-8"))
        settings = ClaraConfig(**{name: written[name] for name in ClaraConfig.model_fields if name in written})
        m, doc_max_tokens = memory_tokens or settings.n_memory_tokens, settings.doc_max_tokens
        tokenizer = model / "tokenizer.json"
        beside = model / settings.base_model
        base_config = base_config or (beside if beside.is_dir() else Path(settings.base_model))
    if parameters is not None and hidden_size is not None:
        shape = ModelShape(hidden_size, parameters)
    elif base_config is not None:
        shape = ModelShape.from_file(base_config)
    else:
        raise ConfigError("a plan needs a model", hint="name --model, --base-config, or --parameters and --hidden-size")
    if corpus:
        from clara_dist.config.corpus import CorpusConfig
        from clara_dist.planning.sample import sample_lengths

        given = {"id_field": id_field, "text_field": text_field, "title_field": title_field}
        given |= {"metadata_fields": metadata_fields, "format": format}
        read = resolve(CorpusConfig, None, None, {"corpus": corpus, **given})
        has_tokenizer = tokenizer if tokenizer is not None and tokenizer.is_file() else None
        counted, lengths = sample_lengths(read, sample, doc_max_tokens=doc_max_tokens, tokenizer=has_tokenizer)
    else:
        counted, lengths = None, Lengths.parse(tokens)
    n_passages = passages or counted
    if n_passages is None:
        raise ConfigError("a plan needs a number of passages", hint="name --passages or --corpus")
    work = Workload(shape, n_passages, m, lengths)
    found = estimate(
        work,
        n_workers=workers,
        gpu=find_gpu(gpu) if gpu else None,
        calibration=Calibration.from_file(calibration) if calibration else None,
        utilization=utilization,
        cost_per_hour=cost_per_hour,
        storage_cost_per_gb_month=storage_cost,
    )
    print(found.to_json() if as_json else _table(work, found))


def _table(work: Workload, plan: Plan) -> str:
    body, wall_s = work.shape.body_parameters, 3600 * plan.wall_hours
    wall = f"{plan.wall_hours:,.1f} hours" if wall_s >= 7200 else f"{wall_s:,.0f} s"
    hours = f"{plan.worker_hours:,.1f}" if plan.worker_hours >= 1 else f"{plan.worker_hours:.4f}"
    cost = "unknown: name --cost-per-hour" if plan.compute_cost is None else f"${plan.compute_cost:,.2f}"
    rows = {
        "passages": f"{work.n_passages:,} of {work.lengths.mean:.0f} + {work.n_memory_tokens} tokens on average",
        "model": f"{body / 1e9:,.3f} G parameters in the layers, {plan.flops_per_document / 1e12:,.4f} TFLOP a passage",
        "speed": f"{plan.documents_per_s:,.1f} passages/s a worker ({plan.rate_source})",
        "worker-hours": f"{hours} (GPU-hours, where a worker has a GPU)",
        "wall time": f"{wall} with {plan.n_workers} workers",
        "store": f"{_size(plan.written_bytes)}: memories {_size(plan.memory_size_bytes)}, "
        f"texts {_size(plan.text_size_bytes)}",
        "index": f"{_size(plan.index_size_bytes)} if approximate; exact search has none",
        "network": f"{_size(plan.read_bytes)} read, {_size(plan.written_bytes)} written, "
        f"{plan.network_bits_per_s / 1e9:,.3f} Gbit/s on average",
        "cost": f"{cost} to compute, ${plan.storage_cost_per_month:,.2f} a month to keep",
    }
    return "\n".join(f"{name:<14} {value}" for name, value in rows.items())


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.2f} TB"
