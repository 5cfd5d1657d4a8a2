"""`python -m bench.client_cost`: what reading one token costs, by the official client and by the appliance's reader.

CPU time of this process per token, each token arriving by itself as a model makes them, in interleaved rounds; and the
memory that importing each takes. It is why the appliance reads the stream itself (docs/dependencies.md).
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import statistics  # noqa: E402  # gevent first
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402

from appliance.engine import Engine  # noqa: E402
from appliance.protocol import LoadOptions, Prompt  # noqa: E402
from bench.fake.handle import running_fake_engine  # noqa: E402

ROUNDS = 7
TOKENS = 500
TOKENS_PER_S = 250
MODEL = "qwen2.5:3b"
IMPORTS = ("appliance.engine", "ollama")
PSS = """
import sys
from gevent import monkey; monkey.patch_all()
import falcon, gunicorn.workers.ggevent, msgspec, http.client
def pss_kib():
    return next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Pss:"))
before = pss_kib()
__import__(sys.argv[1])
print(pss_kib() - before)
"""


def main() -> None:
    with running_fake_engine(tokens=TOKENS, tokens_per_s=TOKENS_PER_S) as fake:
        readers = {"appliance.engine": own_reader(fake.port), "ollama": official_client(fake.port)}
        costs_us: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(ROUNDS + 1):
            for name, read in readers.items():
                begin = time.process_time()
                tokens = read()
                costs_us[name].append((time.process_time() - begin) / tokens * 1e6)
    first = costs_us["appliance.engine"]
    print(f"{'':18} {'CPU us a token':>42}   times appliance.engine   memory of its import")
    for name, values in costs_us.items():
        ratios = [value / own for value, own in zip(values, first, strict=True)][1:]  # the first round is warm-up
        print(f"{name:18} {spread(values[1:]):>42}   {spread(ratios):>22}   {import_pss_mb(name):.1f} MB PSS")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}, n={len(values)})"


def own_reader(port: int) -> Callable[[], int]:
    engine = Engine(port, MODEL, LoadOptions(512, 4, 128), "30m")

    def read() -> int:
        tokens, stream = 0, engine.generate(Prompt("Hello", max_tokens=2048))
        while not stream.is_ended:
            tokens += sum(1 for record in stream.receive(timeout_s=5) if record.text)
        stream.close()
        return tokens

    return read


def official_client(port: int) -> Callable[[], int]:
    import ollama

    client = ollama.Client(host=f"http://127.0.0.1:{port}", trust_env=False)
    messages = [{"role": "user", "content": "Hello"}]

    def read() -> int:
        stream = client.chat(MODEL, messages, stream=True, options={"num_predict": 2048})
        return sum(1 for part in stream if part.message.content)

    return read


def import_pss_mb(name: str) -> float:
    output = subprocess.run([sys.executable, "-c", PSS, name], capture_output=True, text=True, check=True).stdout
    return int(output) / 1024


if __name__ == "__main__":
    main()
