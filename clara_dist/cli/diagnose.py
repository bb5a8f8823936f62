"""What goes on inside a model, on the user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clara_dist.cli.base import app

diagnose_app = typer.Typer(help="Look inside a model.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(diagnose_app, name="diagnose")


@diagnose_app.command("selection")
def diagnose_selection(
    model: Annotated[str, typer.Option(help="Model directory, before or after the joint stage.")],
    store: Annotated[str, typer.Option(help="Memory store that this model's compressor wrote.")],
    data: Annotated[str, typer.Option(help="Rows of the joint stage (jsonl).")],
    top_k: Annotated[int, typer.Option(min=1, help="Documents that the generator reads.")] = 3,
    temperature: Annotated[float, typer.Option(help="tau of the estimators.")] = 0.02,
    n_candidates: Annotated[
        int | None, typer.Option(min=2, help="Take the store's best N as candidates; none: each row's own list.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Measure the first so many rows.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers of one forward pass.")] = 64,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report there.")] = None,
) -> None:
    """Does the joint stage's gradient know what it does? Every document that is read is really swapped.

    Training never tries another document: it asks the gradient of the answer loss what would change if slot j held
    candidate i (the linear estimate). Here each candidate is put into each slot and the loss is computed anew (the true
    change). The first table sets one against the other, by slot and by what the slot held and what came in: "gold"
    documents are those of pos_index, "outsiders" all others. A positive change makes the answer worse. "right sign"
    counts swaps that change the loss by 1e-4 or more.

    The second table says what each estimator makes of its estimates: the cosine between its update of the scores and
    the exact one, made of the true changes (+1: training pulls scores where the loss wants them; below 0: it pulls them
    away), and how often it lowers the score of a gold document that is being read. A working retriever whose gold is
    lowered in most cases will be unlearned.

    It costs examples x K x candidates answers; 100 questions with K = 3 and 20 candidates are 5,700.

    \b
    Examples:
      clara-dist diagnose selection --model models/joint --store stores/wiki --data joint.jsonl --top-k 5
      clara-dist diagnose selection --model m --store s --data joint.jsonl --n-candidates 20 --json selection.json
    """
    import json

    from clara_dist.distributed.progress import Progress
    from clara_dist.evaluation.selection_diagnosis import diagnose_model, first_examples

    rows = first_examples(data, examples)
    diagnosis = diagnose_model(
        model,
        store,
        rows,
        device=device,
        top_k=top_k,
        temperature=temperature,
        n_candidates=n_candidates,
        batch_size=batch_size,
        on_done=Progress("questions", len(rows)).add,
    )
    print(diagnosis.table())
    if json_file is not None:
        json_file.write_text(json.dumps(diagnosis.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"report: {json_file}")


@diagnose_app.command("words")
def diagnose_words(
    model: Annotated[str, typer.Option(help="Model directory, after the joint stage.")],
    store: Annotated[str, typer.Option(help="Memory store that this model's compressor wrote.")],
    questions: Annotated[str, typer.Option(help="Questions with positives, as of `clara-dist eval`.")],
    words: Annotated[int, typer.Option(min=1, help="Tokens that each vector is decoded to.")] = 10,
    examples: Annotated[int, typer.Option(min=1, help="The first so many questions.")] = 400,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report there.")] = None,
) -> None:
    """Does the reasoner know what the question does not say? The words of its vectors, counted.

    Each vector of a question is decoded through the LM head. "words of gold" are those that the right document has and
    the question has not, "any of gold" is the share of questions with one, "of the answer" the share whose vectors say
    a word of the answer; "of another" counts the words of another question's document: what chance gives.

    \b
    Example:
      clara-dist diagnose words --model models/joint --store stores/wiki --questions questions.jsonl
    """
    import json

    from clara_dist.data.questions import read_questions
    from clara_dist.distributed.progress import Progress
    from clara_dist.evaluation.latent_words import count_words
    from clara_dist.model.clara import ClaraModel
    from clara_dist.store.fingerprint import Fingerprint
    from clara_dist.store.reader import MemoryStore

    asked = read_questions(questions)[:examples]
    clara = ClaraModel.from_pretrained(model)
    opened = MemoryStore.open(store)
    opened.require_fingerprint(Fingerprint(clara.fingerprint_fields()), f"the model {model}")
    report = count_words(clara, opened, asked, n_words=words, on_done=Progress("passes", 2 * len(asked)).add)
    print(report.table())
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"report: {json_file}")
