"""What the measuring scripts share: programs run in turns for the JSON that they print, the machine in words, tables, results.

Needs nothing but Python's own library, 3.9 or newer.
"""

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

BENCHES = Path(__file__).resolve().parent
MIB = 2**20


def stop(message):
    sys.exit(f"error: {message}")


def add_programs(parser):
    """Arguments that say which programs run, on how many threads, and where results go."""
    parser.add_argument("--colrow", default=os.path.relpath(BENCHES.parent / "target/release/colrow"), help="the program")
    parser.add_argument("--threads", type=positive, default=len(os.sched_getaffinity(0)),
                        help="of every program; colrow gets them as RAYON_NUM_THREADS")
    parser.add_argument("--out", type=Path, help="JSON file to write; the table goes beside it as .md")


def add_python(parser):
    parser.add_argument("--python", default="python3", help="an interpreter with torch, transformers and, for lora, peft")


def script(name):
    """The path of a script of this folder, as it is typed from here."""
    return os.path.relpath(BENCHES / name)


def positive(text):
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def run(name, command, threads):
    """The JSON object that a command prints. Its errors end this program too."""
    command = [str(part) for part in command]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        stop(f"cannot start {name}: {error}\n  command: {shlex.join(command)}")
    if done.returncode != 0:
        stop(f"{name} ended with exit code {done.returncode}\n  command: {shlex.join(command)}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        stop(f"{name} printed no JSON object: {error}\n  command: {shlex.join(command)}")


def in_turns(commands, rounds, threads, seconds, prepare=lambda name, index: None):
    """Runs every command of a dictionary once a round, and yields all results so far, by name, after each round.

    The one that goes first changes from round to round, so that whatever slows the machine down meets all alike. `seconds` is the key
    that progress shows; `prepare` is told each run before it starts.
    """
    found = {name: [] for name in commands}
    names = list(commands)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            prepare(name, index)
            found[name].append(run(name, commands[name], threads))
            print(f"round {index + 1} of {rounds}: {name} {found[name][-1][seconds]:.3f} s", file=sys.stderr, flush=True)
        yield found


def changed(config, folder, **changes):
    """A copy of a JSON file in `folder`, with changes."""
    settings = json.loads(Path(config).read_text())
    path = Path(folder) / Path(config).name
    path.write_text(json.dumps({**settings, **changes}, indent=2))
    return path


# variables that hold programs to fewer instructions than the machine has
INSTRUCTIONS = ("COLROW_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def this_command():
    held = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
    return " ".join([*held, shlex.join(["python3", *sys.argv])])


def machine(threads):
    """Date, processor and threads, for a result's record."""
    return {"date": datetime.date.today().isoformat(), "cpu": cpu_model(), "threads": threads, "command": this_command()}


def machine_line(result):
    return f"{result['date']}, {result['cpu']}, {result['threads']} threads"


def cpu_model():
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(head, rows):
    """A Markdown table; the first column is text, the others are numbers."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return [line(head), "|---" + "|---:" * (len(head) - 1) + "|", *map(line, rows)]


def mib(size):
    return f"{size / MIB:,.1f}"


def mean_and_deviation(numbers):
    """Mean and sample standard deviation; the latter is None for a single number."""
    return statistics.mean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def write(out, result, text):
    """Writes a result and its table, each at once or not at all; prints nothing."""
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, content in ((out.with_suffix(".json"), json.dumps(result, indent=1) + "\n"), (out.with_suffix(".md"), text)):
        partial = path.with_name(path.name + ".partial")
        partial.write_text(content)
        partial.replace(path)


def cached_model():
    """The model that `colrow quickstart` fetches, in colrow's cache folder."""
    cache = os.environ.get("COLROW_CACHE")
    if not cache:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(base) / "colrow"
    return Path(cache) / "all-minilm-l6-v2"
