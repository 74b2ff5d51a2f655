"""A llama-server with libggml-cpu-riffle.so or without, for tests and benchmarks."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[3]
RUN = ROOT / "scripts" / "llama_run.sh"


def cache_folder() -> pathlib.Path:
    """Where llama.cpp and the models are kept."""
    found = subprocess.check_output([ROOT / "scripts" / "llama_host.sh", "--path"], text=True)
    return pathlib.Path(found.strip()).parent


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "RIFFLE_GGML_LOG": "1", **variables}


class Server:
    """A llama-server with the file or without."""

    def __init__(self, which: str, model: pathlib.Path, *arguments: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [RUN, which, "llama-server", "-m", model, "--port", str(self.port), "--host", "127.0.0.1"]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [*map(str, command), "-t", "2", "--no-webui", "--no-warmup", *arguments],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=environment(),
        )

    def __enter__(self) -> "Server":
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health")
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.__exit__()
        raise RuntimeError("llama-server does not answer:\n" + self.text()[-3000:])

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.seek(0)
        self.printed = self.log.read()
        self.log.close()

    def text(self) -> str:
        """What it printed, once it has ended."""
        return self.printed

    def post(self, path: str, request: dict) -> dict:
        url = f"http://127.0.0.1:{self.port}{path}"
        body = json.dumps(request).encode()
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as reply:
            return json.load(reply)

    def tokens(self, prompt: str, count: int) -> list[tuple[int, float]]:
        """Greedy tokens, each with how far its logit is above the next one.

        Of tokens that a draft model proposed, llama-server does not say that; they count as far above.
        """
        request = {
            "prompt": prompt,
            "n_predict": count,
            "temperature": 0,
            "n_probs": 2,
            "ignore_eos": True,
            "cache_prompt": True,
        }
        steps = self.post("/completion", request)["completion_probabilities"]
        found = []
        for step in steps:
            likeliest = [token["logprob"] for token in step["top_logprobs"]]
            found.append((step["id"], likeliest[0] - likeliest[1] if len(likeliest) > 1 else float("inf")))
        return found

    def all_at_once(self, prompts: list[str], count: int) -> list[list[tuple[int, float]]]:
        results: list[list[tuple[int, float]]] = [[] for _ in prompts]

        def ask(i: int) -> None:
            results[i] = self.tokens(prompts[i], count)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results
