"""Measurements that users can repeat on their own machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from clara_dist.cli.base import app

bench_app = typer.Typer(help="Measure this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")


@bench_app.command("all")
def bench_all(
    only: Annotated[str | None, typer.Option(help="Names of benchmarks, separated by commas.")] = None,
    list_only: Annotated[bool, typer.Option("--list", help="Only say what there is and how long it takes.")] = False,
    out: Annotated[Path, typer.Option(help="Run again, it goes on; one for each version.")] = Path("bench-all"),
    readme: Annotated[Path, typer.Option(help="What is held against the measurements.")] = Path("README.md"),
) -> None:
    """Measure every figure of the README again, one benchmark after the other; exit code 1 where one disagrees.

    Each figure has the spread that a new measurement may differ by, in clara_dist/bench/figures.yaml. What was not
    measured is listed with the reason. Times agree on an idle machine like the README's only.

    \b
    Examples:
      clara-dist bench all --list
      clara-dist bench all --only search,joint
      clara-dist bench all --out /tmp/bench-all
    """
    from clara_dist.bench.figures import read_table
    from clara_dist.bench.remeasure import plan_text, remeasure

    table = read_table()
    if list_only:
        print(plan_text(table))
        return
    outcome = remeasure(table, readme, out, only.split(",") if only else ())
    print(f"\n{outcome.text()}\nreport: {out / 'report.json'}")
    if not outcome.ok:
        raise typer.Exit(1)


@bench_app.command("compress")
def bench_compress(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-compress.json"),
    shape: Annotated[str, typer.Option(help="Random model: small (D 256, 4 layers, V 32,000), tiny or 7b.")] = "small",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    documents: Annotated[int, typer.Option(min=64, help="Of the corpus that is made up for it.")] = 4096,
    workers: Annotated[list[int] | None, typer.Option(help="Workers of the job; repeat it to see it scale.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of the loops without Ray; their median counts.")] = 3,
    naive: Annotated[bool, typer.Option(help="Also measure the naive path.")] = True,
) -> None:
    """Documents/s: the naive path, a bare loop of forward passes, and the whole job on a local Ray.

    \b
    Examples:
      clara-dist bench compress
      clara-dist bench compress --workers 1 --workers 2 --no-naive
      clara-dist bench compress --device cuda --shape 7b
    """
    from clara_dist.bench.compress import BenchSettings, run_bench

    settings = BenchSettings(
        shape=shape,
        device=device,
        n_documents=documents,
        workers=tuple(workers or [1]),
        repeats=repeats,
        naive=naive,
    )
    print(run_bench(settings, output))
    print(f"figures: {output}")


@bench_app.command("estimators")
def bench_estimators(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-estimators.json"),
    work_dir: Annotated[Path, typer.Option(help="Takes worlds and models; run again, it goes on.")] = Path(
        "estimators"
    ),
    seed: Annotated[list[int] | None, typer.Option(help="Of a world and its training; repeat it for several.")] = None,
    diagnosed: Annotated[int, typer.Option(min=0, help="Questions of each swap table; 0: no swap tables.")] = 40,
) -> None:
    """The joint stage with 1, 3 and 5 documents and both estimators, on the demo's world: retrieval and answers.

    Each seed makes its world, base, compressor and store once (2 CPU-minutes); every joint stage (1 to 2 CPU-minutes)
    starts from them. One process, one thread. The figures are of 400 held-out questions over the whole corpus.

    \b
    Examples:
      clara-dist bench estimators
      clara-dist bench estimators --seed 7 --diagnosed 0
    """
    from clara_dist.bench.estimators import EstimatorBench, run_bench

    settings = EstimatorBench(work_dir=work_dir, seeds=tuple(seed or [23, 24]), n_diagnosed=diagnosed)
    print(run_bench(settings, output))
    print(f"figures: {output}")


@bench_app.command("ablations")
def bench_ablations(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-ablations.json"),
    work_dir: Annotated[Path, typer.Option(help="Takes worlds and models; run again, it goes on.")] = Path("ablations"),
    seed: Annotated[list[int] | None, typer.Option(help="Of a world and its training; repeat it for several.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Seeds at a time, each in a process of one thread.")] = 2,
) -> None:
    """The joint stage without one of its parts at a time, on the demo's world: what each of them is good for.

    The gradient of the choice (none, a soft mixture, labels), tau, the number of documents, candidates, memory tokens,
    the MSE term. About 25 CPU-minutes a seed; 400 held-out questions over the whole corpus; mean and spread.

    \b
    Examples:
      clara-dist bench ablations
      clara-dist bench ablations --seed 41 --seed 42 --workers 1
    """
    from clara_dist.bench.ablations import AblationBench, run_bench

    settings = AblationBench(work_dir=work_dir, workers=workers)
    print(run_bench(replace(settings, seeds=tuple(seed)) if seed else settings, output))
    print(f"figures: {output}")


@bench_app.command("joint")
def bench_joint(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-joint.json"),
    shape: Annotated[str, typer.Option(help="Random model: small (D 256, 4 layers, V 32,000), tiny or 7b.")] = "small",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of a step.")] = 4,
    candidates: Annotated[int, typer.Option(min=2, help="Of each question.")] = 20,
    top_k: Annotated[int, typer.Option(min=1, help="Documents that the generator reads.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Steps of each kind; their median counts.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="torch threads.")] = 1,
    profile: Annotated[bool, typer.Option(help="Print where the time of our step goes.")] = False,
) -> None:
    """A joint training step with memories from the store, against two that compress the candidates again.

    The naive step is what the published code does; the lean one is ours but for the memories. All three must give the
    same loss and gradients.

    \b
    Examples:
      clara-dist bench joint
      clara-dist bench joint --threads 2 --profile
    """
    from clara_dist.bench.joint import JointBenchSettings, run_bench

    settings = JointBenchSettings(
        shape=shape,
        device=device,
        batch_size=batch_size,
        n_candidates=candidates,
        top_k=top_k,
        repeats=repeats,
        threads=threads,
    )
    print(run_bench(settings, output, profile=profile))
    print(f"figures: {output}")


@bench_app.command("candidates")
def bench_candidates(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-candidates.json"),
    work_dir: Annotated[Path, typer.Option(help="Takes the runs; finished ones are not done again.")] = Path(
        "candidates-run"
    ),
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Of world and training; repeat it.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the joint stage: NAME=VALUE ...")] = None,
) -> None:
    """The demo's joint stage with candidates given, from the corpus, and mixed: recall over the whole corpus.

    \b
    Examples:
      clara-dist bench candidates --seed 4 --seed 5
      clara-dist bench candidates top_k=3
    """
    from clara_dist.bench.candidates import run_bench

    print(run_bench(seeds or [4], work_dir, output, overrides or ()))
    print(f"figures: {output}")


@bench_app.command("multi-hop")
def bench_multi_hop(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-multi-hop.json"),
    work_dir: Annotated[Path, typer.Option(help="Takes the runs; finished ones are not done again.")] = Path(
        "multi-hop-run"
    ),
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Of world and training; repeat it.")] = None,
) -> None:
    """Estimators where an answer takes two documents: the demo's multi-hop variant, measured over the whole corpus.

    \b
    Example:
      clara-dist bench multi-hop --seed 11 --seed 12
    """
    from clara_dist.bench.multi_hop import MultiHopBench, run_bench

    print(run_bench(MultiHopBench(work_dir=work_dir, seeds=tuple(seeds or [11, 12])), output))
    print(f"figures: {output}")


@bench_app.command("real-text")
def bench_real_text(
    data: Annotated[str, typer.Option(help="Passages with questions: {data_type: qa, question[], answers[], docs[]}.")],
    out: Annotated[Path, typer.Option(help="Takes everything; run again, it goes on.")] = Path("real-text"),
    embedder: Annotated[str | None, typer.Option(help="A sentence-transformers model to compare with.")] = None,
    seed: Annotated[int, typer.Option(help="Of the held-out passages and of all training.")] = 1,
    scale: Annotated[float, typer.Option(min=0, help="Multiplies the steps of all stages.")] = 1.0,
) -> None:
    """A tiny model trained from scratch on real passages, beside BM25 and an embedder: what it can do, and what not.

    A fifth of the passages are held out: no training sees their questions. These are then asked of the whole corpus,
    and among 20 candidates. One process, one thread. The figures, with the command and the seconds of each stage, are
    in OUT/real-text.json; the stages in jobs/configs/real-text.yaml.

    \b
    Examples:
      clara-dist bench real-text --data passages.jsonl --embedder ./all-MiniLM-L6-v2
      clara-dist bench real-text --data passages.jsonl --out /tmp/real-text --scale 0.1
    """
    from clara_dist.bench.real_text import REPORT, RealTextBench, run_bench

    print(run_bench(RealTextBench(data=data, out=out, seed=seed, embedder=embedder, scale=scale)))
    print(f"figures: {out / REPORT}")


@bench_app.command("serve")
def bench_serve(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-serve.json"),
    shape: Annotated[str, typer.Option(help="Random model: small (D 256, 4 layers, V 32,000) or tiny.")] = "small",
    requests: Annotated[int, typer.Option(min=32, help="Of each measurement; a quarter of it one at a time.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=2, help="Of each answer.")] = 32,
    top_k: Annotated[int, typer.Option(min=1, help="Documents of an answer, 256 tokens each.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of the engine.")] = 1,
) -> None:
    """Serving on a random model: the engine alone and over HTTP at 1, 8 and 32 requests at a time, and text RAG.

    Text RAG is the same engine on the text of the same documents in place of their memories. Every answer must be the
    one that it is alone, or the command fails.

    \b
    Examples:
      clara-dist bench serve
      clara-dist bench serve --requests 128 --max-tokens 64
    """
    from clara_dist.bench.serve import ServeBench, run_bench

    settings = ServeBench(shape=shape, n_requests=requests, max_tokens=max_tokens, top_k=top_k, threads=threads)
    print(run_bench(settings, output))
    print(f"figures: {output}")


@bench_app.command("search")
def bench_search(
    output: Annotated[Path, typer.Option(help="Where the figures go, as JSON.")] = Path("bench-search.json"),
    rows: Annotated[int, typer.Option(min=1, help="Memories of the store that is made up for it.")] = 65_536,
    size: Annotated[int, typer.Option(min=4, help="Values of a memory: memory tokens times hidden size.")] = 8192,
    top_k: Annotated[int, typer.Option(min=1, help="Documents of each query.")] = 20,
    queries: Annotated[list[int] | None, typer.Option(help="Searched at once; repeat it. Default: 1, 8, 32.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one for each processor.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Of everything, in turns.")] = 11,
) -> None:
    """Exact search beside NumPy, FAISS and usearch, and the speed at which this machine reads memory.

    A GiB of half precision takes 8 GiB of memory and 2 minutes. NumPy's threads are set by OMP_NUM_THREADS.

    \b
    Examples:
      clara-dist bench search
      clara-dist bench search --size 65536 --rows 8192 --queries 1
    """
    import os

    from clara_dist.bench.search import SearchBenchSettings, run_bench

    settings = SearchBenchSettings(
        rows=rows,
        size=size,
        top_k=top_k,
        batch_sizes=tuple(queries or [1, 8, 32]),
        threads=threads or os.cpu_count() or 1,
        repeats=repeats,
    )
    print(run_bench(settings, output))
    print(f"figures: {output}")
