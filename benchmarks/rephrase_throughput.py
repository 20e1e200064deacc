"""Throughput of `rephrase_corpus` to written Parquet, against bare `vllm.LLM.generate` and against `ray.data.llm`.

    python benchmarks/rephrase_throughput.py [--documents 2048] [--hidden 384] [--layers 6] [--threads 1] [--out FILE.json]
    python benchmarks/rephrase_throughput.py --device cuda --size 1b --documents 8192 --num-seqs 512 --vocabulary 32768 \\
        --max-output-tokens 512 --ends-with j --order ours,bare

The same prompts (token ids), the same seeds, the same engine settings, one engine each, one after the other on one
machine. The model is a Llama of random weights: right for speed, nonsense as text. Such a model hardly ever ends an
answer, so every token with a certain letter in it is one that ends answers, as a chat model has several: lengths are spread
as those of real answers are, an engine that waits for the longest answer of a batch is seen to wait, and answers end where
real ones do, in the engine and not by a search of their text. Starting Ray and the engine is left out of all:

* bare: one `LLM.generate` over all prompts, tokenised beforehand; nothing is written.
* ray_data_llm: `build_processor` as its documentation has it, given the prompts as text: its tokenizer stages, its batch
  size and its number of batches at hand; from Parquet to `write_parquet`, from the moment its first batch enters the
  engine to the last file.
* ray_data_llm_tuned: the same at its best: token ids made beforehand, its tokenizer stages off, enough batches at hand that
  its engine never starves, engine metrics off.
* ours: `rephrase_corpus`, with chunking, tokenising, verdicts, Parquet, checksums and ledger; from the engine's start
  to the last ledger entry.
* ours_two: the same with two engines on the one GPU, half of its memory each.

Ray makes its workers nicer than other processes (niceness 15), which on a machine with anything else to do would slow its
two sides alone; here they have niceness 0.

With `--threads 1` each engine has one core of two and the path around it the other, as a GPU has a host beside it;
with `--threads 2` engine and path share both cores, which no GPU machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.result import give, parser_of, versions
from synth.config import RephraseConfig
from synth.drafts import draft_rows, prepare_recipe
from synth.engines.factory import device_name
from synth.engines.vllm import VllmEngine, sampling_arguments
from synth.errors import UserError
from synth.identity import claim_directory, finish
from synth.ledger import entry_path, read_entries, summarise
from synth.parts import part_name
from synth.rephrase import RephraseWork, open_work
from synth.storage import study_path, write_parquet_atomic
from train.run import ModelConfig
from train.sizes import model_of


def write_corpus(root: str, num_documents: int, per_part: int = 256) -> list[str]:
    """Write a finished corpus of docstrings of the standard library; return some texts for a tokenizer."""
    from synth.docstrings import list_package, read_docstrings

    found = read_docstrings("stdlib", list_package("stdlib")[:500])
    texts = [docstring.text[:1200] for docstring in found if docstring.text and len(docstring.text) > 150]
    texts = (texts * (num_documents // len(texts) + 1))[:num_documents]
    directory = study_path(root, "corpora", "natural")
    identity = claim_directory(directory, "corpus", {"documents": num_documents}, {})
    num_parts = -(-num_documents // per_part)
    for part in range(num_parts):
        numbers = range(part * per_part, min(num_documents, (part + 1) * per_part))
        columns = {
            "doc_id": [f"{number:024x}" for number in numbers],
            "text": [texts[number] for number in numbers],
            "domain": ["stdlib"] * len(numbers),
            "source": ["docstrings"] * len(numbers),
        }
        write_parquet_atomic(directory / "train" / part_name(part, num_parts), pa.table(columns))
    finish(
        directory,
        identity,
        splits={
            "train": {"parts": num_parts, "documents": num_documents},
            "held_out": {"parts": 0, "documents": 0},
        },
    )
    return texts[:2000]


def write_model(directory: Path, texts: list[str], options: argparse.Namespace) -> int:
    """Write a Llama of random weights with a byte-level tokenizer; return its number of parameters.

    Its shape is that of a size by name, where one is given, else of so many layers of a hidden size.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from train.model import Vocabulary, llama_config

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(directory)
    shape = (
        model_of(options.size)
        if options.size
        else ModelConfig(
            num_layers=options.layers,
            hidden_size=options.hidden,
            num_heads=options.hidden // 64,
            num_kv_heads=options.hidden // 64,
            intermediate_size=options.hidden * 3,
        )
    )
    config = llama_config(shape, Vocabulary(tokenizer.get_vocab_size(), 0), 2048)
    config.bos_token_id, config.pad_token_id, config.initializer_range = None, 0, 0.02
    torch.manual_seed(0)
    with torch.device(options.device):
        model = LlamaForCausalLM(config).to(getattr(torch, _dtype(options)))
    model.generation_config.eos_token_id = sorted(
        {0} | {at for token, at in tokenizer.get_vocab().items() if options.ends_with in token}
    )
    model.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def _dtype(options: argparse.Namespace) -> str:
    return "bfloat16" if options.device == "cuda" else "float32"


def configuration(root: str, model: str, options: argparse.Namespace) -> RephraseConfig:
    """Return what the sides have in common, as a configuration of ours."""
    place = (
        {"gpus_per_engine": 1}
        if options.device == "cuda"
        else {"kv_cache_gib": 2.0, "threads": options.threads}
    )
    return RephraseConfig.model_validate(
        {
            "root": root, "corpus": "natural", "recipes": ["hq"],
            "engine": {"model": model, "max_model_len": 1024, "dtype": _dtype(options)},
            "recipe_overrides": {"sampling": {
                "max_output_tokens": options.max_output_tokens, "temperature": 1.0}},
            "placement": {"cpus_per_engine": 1, "max_num_seqs": options.num_seqs} | place,
        }
    )  # fmt: skip


def prompts_of(work: RephraseWork) -> list[dict[str, Any]]:
    """Return every request of the job as token ids and sampling parameters."""
    config = work.config
    engine = VllmEngine(config.engine, config.placement, work.model)
    prepared = [
        prepare_recipe(recipe, engine.tokenizer, config.engine.max_model_len) for recipe in work.recipes
    ]
    requests = []
    for part in range(work.num_parts):
        drafts = draft_rows(
            work.read_part(part), prepared, engine.tokenizer, seed=config.seed, samples_per_chunk=1
        )
        for draft in drafts:
            sampling = sampling_arguments(draft.request(draft.key))
            requests.append({"prompt_token_ids": list(draft.prompt_token_ids), "sampling": sampling})
    return requests


# --- the three sides, each in a process of its own ----------------------------------------------------------------


def run_bare(task: dict[str, Any]) -> dict[str, Any]:
    """Return tokens and seconds of one LLM.generate over all prompts."""
    from vllm import LLM, SamplingParams

    requests = json.loads(Path(task["requests"]).read_text())
    llm = LLM(**task["arguments"])
    prompts = [{"prompt_token_ids": request["prompt_token_ids"]} for request in requests]
    parameters = [SamplingParams(**request["sampling"]) for request in requests]
    began = time.perf_counter()
    outputs = llm.generate(prompts, parameters, use_tqdm=False)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "output_tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
        "rows": len(outputs),
        "texts": [output.outputs[0].text for output in outputs],
    }


def run_ray_data_llm(task: dict[str, Any]) -> dict[str, Any]:
    """Return tokens and seconds of ray.data.llm with the defaults of its processor, from text in Parquet to Parquet."""
    return _through_processor(task, "prompt", {"chat_template_stage": False})  # the model has no template


def run_ray_data_llm_tuned(task: dict[str, Any]) -> dict[str, Any]:
    """Return tokens and seconds of ray.data.llm when all that can be is taken off it, from ids in Parquet to Parquet."""
    batches = max(8, -(-5 * task["arguments"]["max_num_seqs"] // (4 * 32)))
    settings = {
        "chat_template_stage": False, "tokenize_stage": False, "detokenize_stage": False, "log_engine_metrics": False,
        "max_concurrent_batches": batches,
    }  # fmt: skip
    return _through_processor(task, "tokenized_prompt", settings)


def _through_processor(task: dict[str, Any], prompt: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Run a processor over the column `prompt`; return tokens and seconds."""
    import ray
    import ray.data
    import ray.data.llm

    ray.init(num_cpus=8, num_gpus=task["gpus"], include_dashboard=False, logging_level="ERROR")
    arguments = {name: value for name, value in task["arguments"].items() if name not in ("model",)}
    config = ray.data.llm.vLLMEngineProcessorConfig(
        model_source=task["arguments"]["model"], engine_kwargs=arguments, concurrency=(1, 1), batch_size=32,
        placement_group_config={"bundles": [{"CPU": 1} | ({"GPU": 1} if task["gpus"] else {})]}, **settings,
    )  # fmt: skip
    from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF

    begun = Path(f"{task['out']}.begun")

    class Timed(vLLMEngineStageUDF):
        """Notes when the first batch enters the engine, which Ray Data LLM does not tell."""

        async def udf(self, batch: list[dict[str, Any]]) -> Any:
            if not begun.exists():
                begun.touch()
            async for answer in super().udf(batch):
                yield answer

    processor = ray.data.llm.build_processor(
        config,
        preprocess=lambda row: {
            "number": row["number"], prompt: row[prompt], "sampling_params": json.loads(row["sampling"])
        },
        postprocess=lambda row: {
            "number": row["number"], "text": row["generated_text"], "output_tokens": row["num_generated_tokens"]
        },
    )  # fmt: skip
    # Not by assignment: that validates the stage again, which by then has used up its placement and asks for a GPU.
    processor.get_stage_by_name("vLLMEngineStage").__dict__["fn"] = Timed
    source, target = Path(task["requests"]).with_suffix(".parquet"), Path(task["out"])
    processor(ray.data.read_parquet(str(source))).write_parquet(str(target))
    files = list(target.glob("*.parquet"))
    ended = max(file.stat().st_mtime for file in files)
    rows = pa.concat_tables([pq.read_table(file) for file in files]).sort_by("number").to_pylist()
    ray.shutdown()
    return {
        "seconds": ended - begun.stat().st_mtime,
        "output_tokens": sum(row["output_tokens"] for row in rows),
        "rows": len(rows),
        "texts": [row["text"] for row in rows],
    }


def run_ours(task: dict[str, Any]) -> dict[str, Any]:
    """Return tokens and seconds of rephrase_corpus."""
    import ray

    from synth.job import rephrase_corpus

    ray.init(
        num_cpus=2, num_gpus=task["gpus"], include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    config = RephraseConfig.model_validate(task["config"])
    rephrase_corpus(config)
    ray.shutdown()
    return _found(config)


def run_ours_two(task: dict[str, Any]) -> dict[str, Any]:
    """Return tokens and seconds of rephrase_corpus with two engines on one GPU."""
    halves = {"engines": 2, "gpus_per_engine": 0.5}
    placement = task["config"]["placement"] | halves
    return run_ours(task | {"config": task["config"] | {"placement": placement}})


def _found(config: RephraseConfig) -> dict[str, Any]:
    """Return what a finished set holds and what it took, from its files."""
    work = open_work(config)
    entries = list(read_entries(work.directory, work.num_parts))
    written = [
        os.stat(str(entry_path(work.directory, entry.part, work.num_parts))).st_mtime for entry in entries
    ]
    began = min(at - (entry.wall_seconds or 0.0) for at, entry in zip(written, entries, strict=True))
    started = summarise(entries)["engine_start_seconds"]
    rows = [
        row
        for part in range(work.num_parts)
        for row in pq.read_table(
            str(work.directory / part_name(part, work.num_parts)),
            columns=["text", "raw_text", "completion_tokens"],
        ).to_pylist()
    ]
    return {
        "seconds": max(written) - began - started,
        "output_tokens": sum(row["completion_tokens"] for row in rows),
        "rows": len(rows),
        "engine_busy_seconds": summarise(entries)["device_seconds"],
        "texts": [row["text"] if row["raw_text"] is None else row["raw_text"] for row in rows],
    }


SIDES = {
    "bare": run_bare, "ray_data_llm": run_ray_data_llm, "ray_data_llm_tuned": run_ray_data_llm_tuned, "ours": run_ours,
    "ours_two": run_ours_two,
}  # fmt: skip


def run_side(name: str, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Run one side in a process of its own; return what it found, or `failed` with the last line it said."""
    before = os.getloadavg()[0]
    command = [sys.executable, __file__, "--side", name, "--task", json.dumps(task)]
    done = subprocess.run(
        command,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"{name} failed:\n{done.stderr[-4000:]}", file=sys.stderr, flush=True)
        return {"failed": (done.stderr.strip().splitlines() or ["nothing was said"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    result["tokens_per_second"] = result["output_tokens"] / result["seconds"]
    result["load_before"] = round(before, 2)
    print(
        f"{name}: {result['tokens_per_second']:,.0f} output tokens/s, {result['seconds']:.1f} s",
        file=sys.stderr,
        flush=True,
    )
    return result


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the throughputs and the ratios, with machine and versions, after each side: one may take too long."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as root:
        model = Path(root) / "model"
        num_params = write_model(model, write_corpus(root, options.documents), options)
        config = configuration(root, str(model), options)
        work = open_work(config)
        requests = prompts_of(work)
        stored = Path(root) / "requests.json"
        stored.write_text(json.dumps(requests))
        tokenizer = AutoTokenizer.from_pretrained(model)
        rows = [
            {
                "number": at,
                "tokenized_prompt": request["prompt_token_ids"],
                "prompt": tokenizer.decode(request["prompt_token_ids"]),
                "sampling": json.dumps(request["sampling"]),
            }
            for at, request in enumerate(requests)
        ]
        pq.write_table(pa.Table.from_pylist(rows), stored.with_suffix(".parquet"), row_group_size=128)
        task: dict[str, Any] = {
            "requests": str(stored),
            "arguments": VllmEngine(config.engine, config.placement, work.model).arguments(),
            "config": config.model_dump(mode="json"),
            "out": f"{root}/out",
            "gpus": int(options.device == "cuda"),
        }
        environment = {
            "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "RAY_worker_niceness": "0", "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip
        if options.device == "cpu":
            environment |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(options.threads),
            }  # fmt: skip
        about = {
            "model": {"parameters": num_params, "size": options.size, "weights": "random", "dtype": _dtype(options)},
            "device": device_name(config.engine, config.placement),
            "documents": options.documents,
            "requests": len(requests),
            "max_num_seqs": options.num_seqs,
            "engine_threads": options.threads if options.device == "cpu" else None,
            "prompt_tokens": sum(len(request["prompt_token_ids"]) for request in requests),
            "runs_in_order": options.order,
        }  # fmt: skip
        sides: dict[str, list[dict[str, Any]]] = {}
        texts: dict[str, list[str]] = {}
        for name in options.order.split(","):
            if name.startswith("ours"):  # once more means in a set of its own
                task["config"]["name"] = f"{name}{len(sides.get(name, []))}"
            task["out"] = f"{root}/{name}{len(sides.get(name, []))}"
            found = run_side(name, task, environment)
            if "texts" in found:
                texts.setdefault(name, found.pop("texts"))
            sides.setdefault(name, []).append(found)
            yield about | compared(sides, texts)


def compared(sides: dict[str, list[dict[str, Any]]], texts: dict[str, list[str]]) -> dict[str, Any]:
    """Return what the sides took, their ratios, and how many answers differ from those of the bare engine.

    Ray Data LLM leaves the token that ended an answer in its text.
    """
    best = {name: max(run.get("tokens_per_second", 0.0) for run in sides[name]) for name in texts}
    return {
        "sides": sides,
        "ours_over": {name: best["ours"] / best[name] for name in best if "ours" in best and name != "ours"},
        "answers_that_differ_from_bare": {
            name: sum(not mine.startswith(bare) for mine, bare in zip(theirs, texts["bare"], strict=True))
            for name, theirs in texts.items()
            if name != "bare" and "bare" in texts
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "versions": versions(),
    }


def main() -> None:
    """Measure and print the result as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--documents", type=int, default=2048, help="documents to rephrase")
    parser.add_argument("--hidden", type=int, default=384, help="width of the model")
    parser.add_argument("--layers", type=int, default=6, help="layers of the model")
    parser.add_argument("--size", help="shape of the model by name, in place of width and layers")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens of the tokenizer at most")
    parser.add_argument(
        "--max-output-tokens", type=int, default=256, help="an answer that is longer is cut, tokens"
    )
    parser.add_argument(
        "--ends-with",
        default="x",
        help="tokens with this letter end an answer; of 2,048 tokens about one in a hundred has an x",
    )
    parser.add_argument("--num-seqs", type=int, default=256, help="sequences decoded together")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of the engine")
    parser.add_argument(
        "--order",
        default="ours,bare,ray_data_llm,ray_data_llm_tuned",
        help="sides to run, in this order; the best run of a side counts",
    )
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        try:
            print(json.dumps(SIDES[options.side](json.loads(options.task))))
        except UserError as error:  # what Ray prints when it is left like this would hide it
            print(error, file=sys.stderr, flush=True)
            os._exit(2)
        return
    for result in measure(options):
        give(result, options.out)
    if any("failed" in run for runs in result["sides"].values() for run in runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
