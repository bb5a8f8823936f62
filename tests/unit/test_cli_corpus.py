"""The flags of `clara-dist compress` that say what a corpus is."""

from __future__ import annotations

import pytest

from clara_dist import cli
from clara_dist.config.compress import CompressConfig
from clara_dist.data.documents import FieldMap
from clara_dist.distributed import compress_job


def test_flags_become_the_settings_of_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[CompressConfig] = []

    class Stop(Exception):
        pass

    def compress(config: CompressConfig) -> None:
        seen.append(config)
        raise Stop

    monkeypatch.setattr(compress_job, "compress", compress)
    flags = (
        "--corpus a.parquet --corpus s3://b/*.jsonl --model m --store s --format parquet --id-field page.id "
        "--text-field body --title-field page.title --metadata-fields url,lang=page.lang "
        "--metadata-column year:int64 --metadata-column lang:string --on-duplicate last --rejects r.jsonl "
        "--max-rejects 0.001"
    )
    with pytest.raises(SystemExit):
        cli.main(["compress", *flags.split()])
    (config,) = seen
    assert config.corpus == ("a.parquet", "s3://b/*.jsonl")
    assert (config.format, config.on_duplicate) == ("parquet", "last")
    assert (config.rejects_path, config.max_rejects, config.allowed_rejects(10_000)) == ("r.jsonl", 0.001, 10)
    assert config.metadata_columns == {"year": "int64", "lang": "string"}
    fields = FieldMap.from_config(config, config.metadata_columns)
    assert (fields.doc_id, fields.text, fields.title) == ("page.id", "body", "page.title")
    assert fields.metadata == (("lang", "page.lang"), ("url", "url"))
    assert fields.columns == ("year",)  # lang has a place of its own
