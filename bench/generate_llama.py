#!/usr/bin/env python3
"""`riffle generate` beside Debian's unmodified llama.cpp, on the same GGUF files with two threads.

    bench/generate_llama.py                                          all, as a table in Markdown
    bench/generate_llama.py --model smollm2 --case decode-1 --rounds 1
    bench/generate_llama.py --check --model gemma                    the answers alone
    bench/generate_llama.py --unchecked --results runs.json --model gemma --case decode-8k --program "llama off" --rounds 1
    bench/generate_llama.py --results runs.json --table              what is in the file

With --results, every run is added to a file and the table is made of all its runs: so a machine that is free for a few minutes at a time
can measure everything, a program and a case at a time.

Set up with `make build`, scripts/model.sh and scripts/llama_host.sh. Answers come first: for prompts of the fixtures in tests/data both
programs must give the greedy tokens that Transformers gives in float32, up to the first step where its two best logits are closer than a
limit (0.05 for riffle; 0.5 for llama.cpp, which rounds activations to int8). llama.cpp is measured by its own llama-bench and
llama-batched-bench, with flash attention and without; riffle by the stats that it prints, the choice of the tokens included. The programs
take turns, round by round; the best of the rounds is printed for each.
"""

import argparse
import json
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
RIFFLE = ROOT / "build" / "release" / "riffle"
CASES = {
    "decode-1": "one request, 128 tokens after a prompt of 20",
    "decode-32": "32 requests together, 64 tokens each after prompts of 20",
    "prefill-512": "a prompt of 512 tokens",
    "decode-8k": "one request, 16 tokens after a prompt of 8064",
}
DEPTH = 8064  # SmolLM2's context holds 8192
PROGRAMS = ("riffle", "llama on", "llama off")  # flash attention
FIXTURES = {"gemma": "gemma3_greedy.json", "smollm2": "smollm2_greedy.json"}
RIFFLE_CLOSE, LLAMA_CLOSE = 0.05, 0.5


def model_path(name):
    return subprocess.check_output([ROOT / "scripts" / "model.sh", "--path", name], text=True).strip()


def run_riffle(riffle, model, prompts, *options):
    command = [riffle, "generate", "--model", model, "--json", "--threads", "2", *map(str, options)]
    for prompt in prompts:
        command += ["--prompt", prompt]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def run_llama(program, model, *options):
    command = [ROOT / "scripts" / "llama_run.sh", "off", program, "-m", model, "-t", "2", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout


def prompts_of(case, requests):
    """Prompts differ, because riffle would share the pages of equal ones."""
    if case == "decode-1" or case == "decode-32":
        return [f"Chapter {i + 10}. Once upon a time, in a small village by the sea, there lived" for i in range(requests)]
    return ["A" + " one two three" * (170 if case == "prefill-512" else (DEPTH - 2) // 3)]


def measure_riffle(riffle, model, case):
    requests = 32 if case == "decode-32" else 1
    new_tokens = {"decode-1": 128, "decode-32": 64, "prefill-512": 1, "decode-8k": 17}[case]
    *results, last = run_riffle(riffle, model, prompts_of(case, requests), "--max-new-tokens", new_tokens)
    stats = last["stats"]
    if case == "prefill-512":
        assert abs(results[0]["prompt_tokens"] - 512) <= 1, results
        return stats["prefill_tokens_per_second"]
    if case == "decode-8k":
        assert abs(results[0]["prompt_tokens"] - DEPTH) <= 2, results[0]["prompt_tokens"]
    return stats["decode_tokens_per_second"]


def measure_llama(model, case, flash):
    common = ["-fa", flash]
    if case == "decode-32":
        out = run_llama("llama-batched-bench", model, *common, "-c", 4096, "-b", 512, "-ub", 512, "-npp", 20, "-ntg", 64, "-npl", 32)
        row = [line for line in out.splitlines() if re.match(r"\|\s*20 \|", line)][0]
        return float(row.split("|")[8])  # S_TG t/s
    work = {"decode-1": ["-p", 0, "-n", 128, "-d", 20], "prefill-512": ["-p", 512, "-n", 0], "decode-8k": ["-p", 0, "-n", 16, "-d", DEPTH]}
    out = run_llama("llama-bench", model, *common, "-r", 1, "-o", "json", *work[case])
    return json.loads(out)[0]["avg_ts"]


def check_answers(riffle, name, model):
    """Fails unless both programs give Transformers' greedy tokens as far as these are clear."""
    cases = json.loads((ROOT / "tests" / "data" / FIXTURES[name]).read_text())
    compared = 0
    for case in cases[:6]:
        prompt = case.get("text", case.get("prompt"))
        result, _ = run_riffle(riffle, model, [prompt], "--max-new-tokens", len(case["tokens"]))
        for token, wanted, gap in zip(result["tokens"], case["tokens"], case["gaps"]):
            if gap <= RIFFLE_CLOSE:
                break
            assert token == wanted, (name, prompt)
            compared += 1
        clear = next((i for i, gap in enumerate(case["gaps"]) if gap <= LLAMA_CLOSE), len(case["gaps"]))
        if clear == 0:
            continue
        shown, _ = run_riffle(riffle, model, [prompt], "--max-new-tokens", clear)
        for flash in ("on", "off"):
            options = ["-fa", flash, "-p", prompt, "-n", clear, "--temp", 0, "-no-cnv", "--no-display-prompt", "-s", 1]
            text = run_llama("llama-completion", model, *options)
            assert shown["text"].strip() in text, (name, flash, prompt, text, shown["text"])
    print(f"{name}: answers are right ({compared} of riffle's tokens compared)", flush=True)


def measure(arguments, model, case, program):
    if program == "riffle":
        return measure_riffle(arguments.riffle, model, case)
    return measure_llama(model, case, program.split()[1])


def read_results(path):
    return json.loads(path.read_text()) if path and path.exists() else []


def print_table(runs):
    """The best run of each program, and riffle's beside the better of llama.cpp's two settings."""
    print("| model | work | riffle | llama.cpp, flash attention on | off | times the better |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in FIXTURES:
        for case, work in CASES.items():
            speeds = {program: [run["speed"] for run in runs if (run["model"], run["case"], run["program"]) == (name, case, program)] for program in PROGRAMS}
            if not any(speeds.values()):
                continue
            best = {program: max(of, default=0.0) for program, of in speeds.items()}
            peer = max(best["llama on"], best["llama off"])
            times = f"{best['riffle'] / peer:.2f}" if best["riffle"] and peer else "-"
            shown = [f"{best[program]:.1f}" if speeds[program] else "-" for program in PROGRAMS]
            print(f"| {name} | {work} | {' | '.join(shown)} | {times} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=FIXTURES, nargs="+", default=list(FIXTURES))
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unchecked", action="store_true", help="the answers have been checked before")
    parser.add_argument("--check", action="store_true", help="check the answers alone")
    parser.add_argument("--riffle", type=pathlib.Path, default=RIFFLE)
    parser.add_argument("--program", choices=PROGRAMS, nargs="+", default=list(PROGRAMS))
    parser.add_argument("--results", type=pathlib.Path, help="a file that runs are added to")
    parser.add_argument("--table", action="store_true", help="print the table of the file of --results and measure nothing")
    arguments = parser.parse_args()
    runs = read_results(arguments.results)
    if arguments.table:
        print_table(runs)
        return
    for name in arguments.model:
        if not arguments.unchecked:
            check_answers(arguments.riffle, name, model_path(name))
    if arguments.check:
        return
    for name in arguments.model:
        model = model_path(name)
        for case in arguments.case:
            for _ in range(arguments.rounds):
                for program in arguments.program:
                    speed = measure(arguments, model, case, program)
                    print(f"{name}, {CASES[case]}, {program}: {speed:.1f} tokens/s", flush=True)
                    runs.append({"model": name, "case": case, "program": program, "speed": round(speed, 2)})
                    if arguments.results:
                        arguments.results.write_text(json.dumps(runs, indent=1) + "\n")
    print_table(runs)


if __name__ == "__main__":
    main()
